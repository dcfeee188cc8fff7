"""`recommender serve`: one server, or a supervisor of several."""

from __future__ import annotations

from typing import Annotated

import typer

from recommender.cli.lazy import imported
from recommender.cli.running import failures_logged, load_settings, loaded, open_log, run
from recommender.server.process import ExitCode, stopping_on_signals
from recommender.server.supervisor import Supervisor, WorkerNotStartedError
from recommender.settings.otlp import Otlp

_HELD_SECONDS = 10.0
"""How long a start may take to fail without a line but its reason; a worker imports for a second or more."""


def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="What to serve, as in RECOMMENDER_MODEL; `reference` needs no file."),
    ] = None,
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    model_option: Annotated[str | None, typer.Option("--model", help="The same as the argument.")] = None,
    edge: Annotated[str | None, typer.Option(help="grpc or envoy.")] = None,
    workers: Annotated[int | None, typer.Option(help="Servers on the port; 0: one for each CPU.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="TCP port for Prometheus and `recommender top`.")] = None,
    registry: Annotated[str | None, typer.Option(help="Tracking URI of the MLflow registry.")] = None,
    num_recommendations: Annotated[int | None, typer.Option(help="Number where callers set no limit.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or coreml.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config_file: Annotated[str | None, typer.Option(help="TOML or YAML file of settings.")] = None,
    secrets_dir: Annotated[str | None, typer.Option(help="Folder of secrets, a file for each setting.")] = None,
) -> None:
    """Serve a model until SIGTERM, SIGINT or SIGHUP.

    Set settings as environment variables or in a file; `recommender config` lists them all. Options win.
    """
    settings = load_settings(
        host=host,
        port=port,
        model=model or model_option,
        edge=edge,
        workers=workers,
        metrics_port=metrics_port,
        registry_uri=registry,
        num_recommendations=num_recommendations,
        device=device,
        log_level=log_level,
        config_file=config_file,
        secrets_dir=secrets_dir,
    )
    if settings.operations.workers == 1:
        # A supervisor imports none of it: 60 MB.
        imported("recommender.cli.worker:serve_alone")(settings)

    loaded(Otlp.load)  # else each worker would end for it, again and again

    async def main() -> ExitCode:
        supervisor = Supervisor(settings)
        async with open_log(settings, hold=_HELD_SECONDS) as lines, stopping_on_signals(supervisor):
            try:
                await supervisor.start()
            except WorkerNotStartedError:
                lines.drop()
                return ExitCode.NOT_STARTED
            lines.release()
            with failures_logged():
                return await supervisor.run()

    raise typer.Exit(run(main()))
