"""The command line: serve, client, demo, export, profile, health, token, config."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Column, Table

from recommender.cli.models import app as models
from recommender.errors import StartError

if TYPE_CHECKING:
    from recommender.client import Recommendations
    from recommender.server.envoy import EnvoyServer
    from recommender.settings.settings import Settings

app = typer.Typer(
    help="A gRPC service that turns a user's history of items into the top-K next items.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(models, name="models")

EXAMPLES: tuple[tuple[int, ...], ...] = ((1, 2, 3, 4), (0,), (9999, 999, 99))
"""Histories that the reference model knows."""
_DEMO_REQUESTS = 256
_DEMO_SHOWN = 5
_CALL_TIMEOUT = 10.0
_LAST_LINES_SECONDS = 2.0
"""How long the end of the process waits for whoever reads its log."""
_PICTURE_WIDTH = 150

R = TypeVar("R")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    model: Annotated[str | None, typer.Option(help="Model file, or folder of versions, to serve.")] = None,
    num_recommendations: Annotated[int | None, typer.Option(help="Number where callers set no limit.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or coreml.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve a model until SIGTERM or SIGINT; options win over the environment and `.env` files."""
    settings = _settings(
        host=host,
        port=port,
        model=model,
        num_recommendations=num_recommendations,
        device=device,
        log_level=log_level,
    )
    if settings.operations.workers == 1:
        _serve(settings, None)
    from recommender.server.process import stopping_on_signals  # noqa: PLC0415
    from recommender.server.supervisor import Supervisor  # noqa: PLC0415

    async def main() -> int:
        supervisor = Supervisor(settings)
        async with stopping_on_signals(supervisor):
            await supervisor.start()
            return await supervisor.run()

    raise typer.Exit(_run(_logged(settings, main())))


@app.command(hidden=True)
def worker(number: Annotated[int, typer.Argument(help="Which of the supervisor's servers this is.")]) -> None:
    """Serve as one of several; started by `recommender serve` with RECOMMENDER_WORKERS."""
    _serve(_settings(), number)


def _serve(settings: Settings, worker: int | None) -> NoReturn:
    """One server until it is stopped; tied to its supervisor if it is a worker."""
    from recommender.server.heartbeat import beat  # noqa: PLC0415
    from recommender.server.process import ExitCode, spare_collections, stopping_on_signals  # noqa: PLC0415 (only who serves pays)
    from recommender.server.server import Server  # noqa: PLC0415
    from recommender.settings.otlp import Otlp  # noqa: PLC0415

    otlp = _loaded(Otlp.load)

    async def main() -> tuple[ExitCode, bool]:
        server: Server | EnvoyServer
        if settings.network.edge == "envoy":
            from recommender.server.envoy import EnvoyServer  # noqa: PLC0415 (only who serves with it pays)

            server = EnvoyServer(settings, otlp=otlp)
        else:
            server = Server(settings, otlp=otlp, shared_port=worker is not None)
        async with stopping_on_signals(server):
            beating = asyncio.create_task(beat(server)) if worker is not None and isinstance(server, Server) else None
            try:
                await server.start()
                spare_collections()
                code = await server.run()
                return code, await server.close()
            finally:
                if beating is not None:
                    beating.cancel()

    code, ended = _run(_logged(settings, main(), worker))
    if not ended:
        # A native call that hangs cannot be joined, and would keep the interpreter from leaving.
        os._exit(code)
    raise typer.Exit(code)


@app.command()
def client(
    host: Annotated[str, typer.Option(help="Where the server is.")] = "localhost",
    port: Annotated[int, typer.Option(help="The server's port.")] = 50051,
    items: Annotated[str | None, typer.Option(help="A history: item ids, oldest first, as 1,2,3,4.")] = None,
    limit: Annotated[int, typer.Option(help="How many recommendations; 0 leaves it to the server.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each answer.")] = _CALL_TIMEOUT,
    ca: Annotated[Path | None, typer.Option(help="Authority of the server's certificate; with it, TLS.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Own certificate, for mutual TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key of the own certificate.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token to send.")] = None,
) -> None:
    """Ask a running server; without --items, for a few examples."""
    histories = (_history(items),) if items is not None else EXAMPLES
    import grpc  # noqa: PLC0415 (`recommender config` needs none of it)

    from recommender.client import Client  # noqa: PLC0415

    try:
        credentials = None
        if ca is not None:
            own = [path.read_bytes() if path is not None else None for path in (key, certificate)]
            credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *own)
        token = token_file.read_text(encoding="utf-8").strip() if token_file is not None else None
    except OSError as error:
        _fail(f"{error.filename} cannot be read: {error.strerror}", 2)

    async def ask() -> list[Recommendations]:
        async with Client(f"{host}:{port}", credentials=credentials, token=token) as connection:
            return [await connection.recommend(ids, limit=limit, timeout=timeout) for ids in histories]

    try:
        answers = _run(ask())
    except grpc.aio.AioRpcError as error:
        _fail(f"{host}:{port} answered {error.code().name}: {error.details()}", 1)
    _print_answers(histories, answers)


@app.command()
def demo() -> None:
    """Start a server on a free port, send it concurrent requests, show what came of it (by grpc.aio)."""
    settings = _settings(port=0, host="127.0.0.1", log_level="warning", edge="grpc")
    from recommender.client import Client  # noqa: PLC0415 (only who serves pays)
    from recommender.server.server import Server  # noqa: PLC0415

    out = Console()

    async def main() -> None:
        server = Server(settings)
        await server.start()
        try:
            items = server.model.items or len(EXAMPLES)
            histories = [tuple(id_ % items for id_ in ids) for ids in EXAMPLES]
            histories += [
                tuple((7 * row + 13 * step) % items for step in range(1 + row % 9))
                for row in range(len(EXAMPLES), _DEMO_REQUESTS)
            ]
            out.print(
                f"Serving [bold]{server.model.label}[/] on port {server.port}; "
                f"sending {len(histories)} requests at once …"
            )
            async with Client(f"127.0.0.1:{server.port}") as connection:
                answers = await asyncio.gather(*(connection.recommend(ids, timeout=_CALL_TIMEOUT) for ids in histories))
            _print_answers(histories[:_DEMO_SHOWN], answers[:_DEMO_SHOWN])
            batches = server.batcher.statistics().batches
            table = Table("batch size", "engine runs", title=f"{len(histories)} requests, {sum(batches.values())} runs")
            for size, count in sorted(batches.items()):
                table.add_row(str(size), str(count))
            out.print(table)
        finally:
            await server.close()

    _run(_logged(settings, main()))


@app.command()
def export(
    network: Annotated[
        str, typer.Option(help="reference, sasrec, gru4rec, or your own as module:factory.")
    ] = "reference",
    num_recommendations: Annotated[
        int | None, typer.Option(help="How many callers get who set no limit; by default the configured number.")
    ] = None,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 10_000,
    dim: Annotated[int, typer.Option(help="Size of an item embedding.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    layers: Annotated[int, typer.Option(help="Layers of a sequential network.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads of a sequential network.")] = 2,
    longest_history: Annotated[int, typer.Option(help="Most recent items that a sequential network reads.")] = 200,
    max_k: Annotated[int | None, typer.Option(help="The most a caller may ask for; by default 1000.")] = None,
    coarse: Annotated[str, typer.Option(help="none, or int8 for a coarse table beside the exact one.")] = "none",
    checkpoint: Annotated[Path | None, typer.Option(help="A state_dict written by torch.save.")] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="The items' keys: a text file, line i the key of item i.")
    ] = None,
    fallback: Annotated[
        Path | None,
        typer.Option(help="What to recommend where nothing is known: a key (or id) a line, best first."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the network's.")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    output: Annotated[
        Path | None, typer.Option(help="The file; by default {K}_model.onnx in the weights folder.")
    ] = None,
) -> None:
    """Export a torch network as a model file with its card, checked against the network itself."""
    settings = _settings(num_recommendations=num_recommendations)
    try:
        from recommender.export import ExportError, ExportOptions, export_model  # noqa: PLC0415 (torch is optional)
    except ModuleNotFoundError as error:
        _fail(
            f"export needs {error.name}, which serving does not: run `uv run --group model recommender export …`, "
            "or install recommender[model]",
            2,
        )
    from rich.progress import Progress  # noqa: PLC0415 (only who exports pays)

    k = settings.models.num_recommendations
    try:
        options = ExportOptions(
            network=network,
            items=items,
            dim=dim,
            seed=seed,
            layers=layers,
            heads=heads,
            longest_history=longest_history,
            num_recommendations=k,
            max_k=max_k,
            output=output or settings.models.weights_dir / f"{k}_model.onnx",
            checkpoint=checkpoint,
            vocabulary=vocabulary,
            fallback=fallback,
            name=name,
            version=version,
            coarse=coarse,  # type: ignore[arg-type]  # the options check it
        )
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("exporting", total=1.0)
            path = export_model(options, lambda stage, share: bar.update(task, description=stage, completed=share))
    except ExportError as error:
        _fail(str(error), 2)
    typer.echo(f"{path}: {path.stat().st_size:,} bytes, checked against the network, card beside it")


@app.command()
def profile(
    model: Annotated[Path, typer.Argument(help="Model file to measure.")],
    p99_ms: Annotated[float, typer.Option("--p99-ms", min=0.01, help="Latency objective, engine and wait.")] = 20.0,
    threads: Annotated[str, typer.Option(help="Thread counts, as 1,2,4; empty: up to all CPUs.")] = "",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,4,16,64,128",
    histories: Annotated[str, typer.Option(help="Items of a history; the settings are for the longest.")] = "1,20,100",
    seconds: Annotated[float, typer.Option(min=0.0, help="How long each combination is measured.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or coreml.")] = None,
    output: Annotated[Path, typer.Option(help="Where the page with the plots goes.")] = Path("profile.html"),
) -> None:
    """Measure a model over batch sizes, histories and threads; end with settings for a latency objective."""
    settings = _settings(device=device)
    counts, rows, lengths = (
        _counts(threads, "--threads"),
        _counts(batches, "--batches"),
        _counts(histories, "--histories"),
    )
    from rich.progress import Progress  # noqa: PLC0415 (only who measures pays)

    from recommender.cli.profile import COLUMNS, cells, page  # noqa: PLC0415
    from recommender.engine import profile as profiling  # noqa: PLC0415
    from recommender.engine.engine import open_engine  # noqa: PLC0415
    from recommender.engine.machine import available_cpus  # noqa: PLC0415
    from recommender.models.artifact import open_artifact  # noqa: PLC0415
    from recommender.models.sources.file import find_model  # noqa: PLC0415

    counts = counts or list(profiling.thread_counts(available_cpus()))
    out = Console()

    async def main() -> list[profiling.Point]:
        artifact = open_artifact(find_model(settings.models.weights_dir, settings.models.num_recommendations, model))
        with Progress(console=out, transient=True) as progress:
            task = progress.add_task(f"Measuring {artifact.name}", total=profiling.steps(counts, rows, lengths))
            return await profiling.profile(
                lambda count: open_engine(settings, artifact, count),
                threads=counts,
                rows=rows,
                histories=lengths,
                seconds=seconds,
                done=lambda: progress.advance(task),
            )

    points = _run(main())
    advice = profiling.advise(points, p99_ms / 1e3, lengths[-1])
    table = Table(*(Column(name, justify="right") for name in COLUMNS), title=f"{model} on this machine")
    for point in points:
        table.add_row(*cells(point), style="bold green" if point is advice.point else None)
    out.print(table)
    out.print("\n".join(advice.lines), highlight=False, soft_wrap=True)
    output.write_text(page(model.name, points, advice, p99_ms / 1e3), encoding="utf-8")
    out.print(f"\nPlots: {output}")


@app.command()
def top(
    url: Annotated[
        str | None, typer.Option(help="The server's metrics; by default at RECOMMENDER_METRICS_PORT, or 9464.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    looks: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 never.")] = 0,
    svg: Annotated[Path | None, typer.Option(help="Write the last look to this file, as a picture.")] = None,
) -> None:
    """Watch a running server: calls, latency, batches, load; from its metrics endpoint."""
    from rich.live import Live  # noqa: PLC0415 (only who watches pays)

    from recommender.cli.top import watch  # noqa: PLC0415
    from recommender.observability.scraping import NoMetricsError  # noqa: PLC0415

    url = url or f"http://localhost:{_settings().operations.metrics_port or 9464}/metrics"
    console = Console()
    last: RenderableType = ""
    try:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal) as live:
            for last in itertools.islice(watch(url, interval), looks or None):
                live.update(last, refresh=True)
    except NoMetricsError as error:
        _fail(str(error), 1)
    if console.is_terminal:
        console.print(last)  # the screen has taken it away
    if svg is not None:
        picture = Console(record=True, file=io.StringIO(), width=_PICTURE_WIDTH)
        picture.print(last)
        picture.save_svg(str(svg), title="recommender top")


@app.command()
def health(
    address: Annotated[str | None, typer.Option(help="Where to ask; by default RECOMMENDER_HEALTH_PORT here.")] = None,
    name: Annotated[str, typer.Option(help="startup, readiness or liveness.")] = "readiness",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 2.0,
) -> None:
    """Ask a server's health port, for probes that run a command; exit code 0 if it is SERVING, else 1."""
    from recommender.edges.address import address_of  # noqa: PLC0415

    if address is None:
        settings = _settings()
        if not settings.operations.health_port:
            _fail("there is no RECOMMENDER_HEALTH_PORT to ask: set it, or give --address", 2)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.network.host, settings.network.host)  # noqa: S104 (not listened on)
        address = address_of(host, settings.operations.health_port)
    import grpc  # noqa: PLC0415 (`recommender config` needs none of it)

    from recommender.server.probes import probe  # noqa: PLC0415

    try:
        status = _run(probe(address, name, timeout))
    except grpc.aio.AioRpcError as error:
        _fail(f"{name} of {address}: {error.code().name}: {error.details()}", 1)
    typer.echo(f"{name}: {status}")
    raise typer.Exit(status != "SERVING")


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Who will use it, as logs and metrics shall say.")],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; by default it never does.")] = None,
) -> None:
    """Make a token: it goes to standard output, once; its table for the tokens file to standard error."""
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415 (only who makes tokens pays)

    from recommender.security.access import digest_of, new_token  # noqa: PLC0415

    made = new_token()
    table = [f"[{json.dumps(name)}]", f'sha256 = ["{digest_of(made).hex()}"]']
    if days is not None:
        table.append(f"expires = {datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}")
    typer.echo("# For RECOMMENDER_TOKENS_FILE:\n" + "\n".join(table), err=True)
    typer.echo(made)


@app.command()
def config(
    *,
    template: Annotated[bool, typer.Option("--template", help="Print .env.template instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md instead.")] = False,
) -> None:
    """Print the effective settings, secrets masked."""
    from recommender.settings import pages  # noqa: PLC0415 (its functions have the names of the options)

    if template:
        sys.stdout.write(pages.template())
    elif markdown:
        sys.stdout.write(pages.markdown())
    else:
        for key, value in _settings().environment().items():
            sys.stdout.write(f"{key}={value}\n")


def main() -> None:
    """Run the command line; the exit code is the process's."""
    # gRPC's C core logs what it also raises, and we say it in a sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # ONNX Runtime's official builds report to Microsoft by default, from 1.29 on also on Linux.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    app(prog_name="recommender")


def _settings(**overrides: object) -> Settings:
    from recommender.settings.settings import Settings  # noqa: PLC0415 (`recommender client` needs none of it)

    return _loaded(lambda: Settings.load(overrides))


def _loaded(load: Callable[[], R]) -> R:
    try:
        return load()
    except StartError as error:
        _fail(str(error), 2)


async def _logged(settings: Settings, coroutine: Coroutine[Any, Any, R], worker: int | None = None) -> R:
    """Run with a log on standard error, all of which is written at the end if anybody reads it."""
    from recommender.observability.log import set_up_logging  # noqa: PLC0415 (only who serves pays)

    writer = set_up_logging(settings.operations.log_level, settings.operations.log_format, worker=worker)
    try:
        return await coroutine
    finally:
        await asyncio.to_thread(writer.finish, _LAST_LINES_SECONDS)


def _run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run on uvloop where it exists; a start that was refused ends the process with its sentence."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415 (not on Windows)

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(coroutine)
    except StartError as error:
        _fail(str(error), 2)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"recommender: {message}", err=True)
    raise typer.Exit(code)


def _history(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers such as 1,2,3,4", param_hint="--items"
        ) from None


def _counts(text: str, option: str) -> list[int]:
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",") if part.strip()]
    if 0 in counts:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 1,2,4", param_hint=option)
    return sorted(set(counts))


def _print_answers(histories: Sequence[tuple[int, ...]], answers: Sequence[Recommendations]) -> None:
    table = Table("history", "recommendations, best first, with scores", show_lines=True)
    for history, answer in zip(histories, answers, strict=True):
        ids = [str(item) for item in answer.item_ids]
        scores = [f"{score:.2f}" for score in answer.scores]
        width = max(map(len, (*ids, *scores)), default=0)
        lines = [" ".join(cell.rjust(width) for cell in row) for row in (ids, scores) if row]
        table.add_row(" ".join(map(str, history)), "\n".join(lines))
    table.caption = f"model {answers[0].model_version}"
    Console().print(table)


if __name__ == "__main__":
    main()
