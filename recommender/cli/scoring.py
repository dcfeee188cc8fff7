"""`recommender score`: score files of histories on this machine, or on a Ray cluster."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from recommender.cli.lazy import fail
from recommender.cli.running import load_settings, logged, run
from recommender.settings.settings import Settings
from recommender.threads import in_background

if TYPE_CHECKING:
    from recommender.bulk.job import JobOptions, Progress, Summary
    from recommender.bulk.pipeline import StoppedError

_TOO_MANY_ERRORS, _NOT_DONE, _STOPPED = 1, 2, 3
_LINE_SECONDS = 10.0

Column = Annotated[str | None, typer.Option(help="Column, if it has another name.")]

log = structlog.get_logger(__name__)


def score(
    model: Annotated[str, typer.Argument(help="The model, as in RECOMMENDER_MODEL.")],
    *,
    input_: Annotated[
        str, typer.Option("--input", help="Parquet, Arrow, CSV or JSONL: a file, folder, glob or s3:// address.")
    ],
    output: Annotated[str, typer.Option(help="Folder or s3:// address for the Parquet parts.")],
    user: Annotated[str | None, typer.Option(help="Column of the user; by default user, user_id or user_key.")] = None,
    item_ids: Annotated[str | None, typer.Option(help="Column of the history as ids.")] = None,
    item_keys: Annotated[str | None, typer.Option(help="Column of the history as keys.")] = None,
    limit: Annotated[str | None, typer.Option(help="Column of how many to recommend.")] = None,
    excluded_item_ids: Annotated[str | None, typer.Option(help="Column of items not to recommend, as ids.")] = None,
    excluded_item_keys: Annotated[str | None, typer.Option(help="The same as keys.")] = None,
    candidate_item_ids: Annotated[str | None, typer.Option(help="Column of the only items to rank, as ids.")] = None,
    candidate_item_keys: Annotated[str | None, typer.Option(help="The same as keys.")] = None,
    history_type_ids: Annotated[str | None, typer.Option(help="Column of each item's type, as ids.")] = None,
    history_type_keys: Annotated[str | None, typer.Option(help="The same as keys.")] = None,
    history_times: Annotated[str | None, typer.Option(help="Column of each item's time, in Unix milliseconds.")] = None,
    filter_: Annotated[str | None, typer.Option("--filter", help="Column of filters; needs a table of items.")] = None,
    filter_parameters: Annotated[
        str | None, typer.Option(help="Column of their parameters: structs, maps or JSON objects.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A column to look past; may be given again.")] = None,
    exclude_history: Annotated[bool, typer.Option("--exclude-history", help="Recommend what is new only.")] = False,
    num_recommendations: Annotated[int | None, typer.Option(help="How many a row gets without a limit.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPUs to use; by default all.")] = None,
    batch_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a batch; by default by the catalogue.")] = None,
    part_rows: Annotated[int, typer.Option(min=1, max=10_000_000, help="Rows of a part at most.")] = 100_000,
    limit_rows: Annotated[int | None, typer.Option(min=1, help="Score the first rows only.")] = None,
    max_errors: Annotated[
        str, typer.Option(help="Most bad rows for exit code 0: a number, or a share such as 1%.")
    ] = "1%",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Score a few rows, here, and write nothing.")] = False,
    on: Annotated[str | None, typer.Option(help="ray or ray://HOST:PORT, to score on a cluster.")] = None,
    items: Annotated[Path | None, typer.Option(help="Table of items for filters, as RECOMMENDER_ITEMS.")] = None,
    registry: Annotated[str | None, typer.Option(help="Tracking URI of the MLflow registry.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or coreml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score files of histories without a server.

    The output is Parquet with the same answers as online and an error column.

    Stopped or killed, the same command continues where it was. Exit code 0: done; 1: done, with more bad rows than
    --max-errors; 2: it cannot start or continue; 3: stopped by a signal.
    """
    most = _max_errors(max_errors)
    settings = load_settings(
        num_recommendations=num_recommendations, items=items, registry_uri=registry, device=device, log_level=None
    )
    with _needed("bulk"):
        from recommender.bulk.job import JobOptions  # noqa: PLC0415 (a sentence if its packages are missing)
    chosen = {
        "user": user,
        "item_ids": item_ids,
        "item_keys": item_keys,
        "limit": limit,
        "excluded_item_ids": excluded_item_ids,
        "excluded_item_keys": excluded_item_keys,
        "candidate_item_ids": candidate_item_ids,
        "candidate_item_keys": candidate_item_keys,
        "history_type_ids": history_type_ids,
        "history_type_keys": history_type_keys,
        "history_times": history_times,
        "filter": filter_,
        "filter_parameters": filter_parameters,
    }
    options = JobOptions(
        {meaning: name for meaning, name in chosen.items() if name is not None},
        tuple(ignore or ()),
        exclude_history,
        part_rows,
        limit_rows,
    )
    if on is not None and not dry_run:
        with _needed("ray"):
            from recommender.bulk.cluster.on_ray import score_on_ray  # noqa: PLC0415 (a sentence if its packages are missing)
        asked = _blocking(
            lambda tick: score_on_ray(
                on, model, input_, output, options, settings, tick, threads=threads, batch_rows=batch_rows
            )
        )
    else:
        asked = _here(
            model, input_, None if dry_run else output, options, settings, threads=threads, batch_rows=batch_rows
        )
    summary = _ended(run(logged(settings, asked, level="warning" if sys.stderr.isatty() else None)))
    _print(summary, as_json=as_json)
    raise typer.Exit(_TOO_MANY_ERRORS if summary.counts.failed > most(summary.counts.rows) else 0)


async def _here(
    model: str,
    where: str,
    output: str | None,
    options: JobOptions,
    settings: Settings,
    *,
    threads: int | None,
    batch_rows: int | None,
) -> Summary | StoppedError:
    """Score on this machine into `output`; without one only a few rows, and write nothing."""
    from recommender.bulk.files.inputs import find_inputs  # noqa: PLC0415 (a sentence if its packages are missing)
    from recommender.bulk.files.output import open_folder  # noqa: PLC0415 (the same)
    from recommender.bulk.job import Job  # noqa: PLC0415 (the same)
    from recommender.bulk.model import open_bulk_model  # noqa: PLC0415 (the same)
    from recommender.bulk.pipeline import StoppedError  # noqa: PLC0415 (the same)

    inputs = await in_background(find_inputs, where)
    opened = await open_bulk_model(settings, model, threads=threads, batch_rows=batch_rows)
    try:
        job = await in_background(lambda: Job(opened, inputs, options, longest=settings.engine.engine_timeout_ms / 1e3))
        if output is None:
            return await in_background(job.try_out)
        folder = open_folder(output)
        with _stopping(job.stop), _shown() as tick:
            return await in_background(job.run, folder, tick)
    except StoppedError as error:
        return error
    finally:
        await in_background(opened.close)


async def _blocking(score: Callable[[Callable[[Progress], None]], Summary]) -> Summary | StoppedError:
    """Score in the main thread, as Ray wants it. It blocks the event loop, which has nothing else to do.

    What Ray prints goes to standard error: standard output has the summary alone.
    """
    from recommender.bulk.pipeline import StoppedError  # noqa: PLC0415 (a sentence if its packages are missing)

    with redirect_stdout(sys.stderr), _shown() as tick:
        try:
            return score(tick)
        except StoppedError as error:
            return error


def _ended(outcome: Summary | StoppedError) -> Summary:
    """The summary; a job that was stopped ends the process."""
    if isinstance(outcome, Exception):
        fail(str(outcome), _STOPPED)
    return outcome


@contextmanager
def _needed(extra: str) -> Iterator[None]:
    """A package that is missing ends the process with the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"score needs {error.name}, which serving does not: install recommender[{extra}]", _NOT_DONE)


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT; a second one ends the process at once, as by default."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def told() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        stop()

    for number in numbers:
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """Show progress: a bar in a terminal, else a line in the log every few seconds."""
    began = time.monotonic()
    console = Console(stderr=True)
    if not console.is_terminal:
        told = [began]

        def line(progress: Progress) -> None:
            now = time.monotonic()
            if now >= told[0] + _LINE_SECONDS:
                told[0] = now
                speed = max(progress.ranked / (now - began), 1)
                left = None if progress.total is None else round((progress.total - progress.rows) / speed)
                log.info(
                    "scoring",
                    rows=progress.rows,
                    of=progress.total,
                    percent=round(progress.share * 100, 1),
                    errors=progress.errors,
                    rows_per_second=round(speed),
                    seconds_left=left,
                )

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=1.0)

        def update(progress: Progress) -> None:
            speed = progress.ranked / max(time.monotonic() - began, 1e-9)
            told = f"{progress.rows:,} rows, {speed:,.0f} rows/s, {progress.errors:,} errors"
            bar.update(task, completed=progress.share, description=told)

        yield update


def _max_errors(text: str) -> Callable[[int], float]:
    """How many of so many rows may be bad."""
    number = text.removesuffix("%")
    try:
        value = float(number) if number != text else int(number)
    except ValueError:
        value = -1
    if not value >= 0:
        raise typer.BadParameter(f"{text!r} is neither a number nor a share such as 1%", param_hint="--max-errors")
    return (lambda rows: rows * value / 100) if number != text else (lambda _: value)


def _print(summary: Summary, *, as_json: bool) -> None:
    counts = summary.counts
    facts: dict[str, Any] = {
        "rows": counts.rows,
        "errors": dict(counts.errors),
        "fallbacks": counts.fallbacks,
        "parts": summary.parts,
        "rows_before": summary.rows_before,
        "seconds": round(summary.seconds, 3),
        "rows_per_second": round(summary.rows_per_second),
        "batch_p50_ms": _in_ms(summary.batch_quantile(0.5)),
        "batch_p99_ms": _in_ms(summary.batch_quantile(0.99)),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    table = Table("", "", show_header=False)
    for name, value in facts.items():
        if name == "errors":
            table.add_row("errors", f"{counts.failed:,}")
            for kind, count in counts.errors.most_common():
                table.add_row(f"  {kind}", f"{count:,}")
        elif value is not None:
            table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
