"""One server in this process: `recommender worker`, and `recommender serve` without a supervisor."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, NoReturn

import typer

from recommender.cli.running import failures_logged, load_settings, loaded, open_log, run
from recommender.observability.log import Writer
from recommender.server.envoy import EnvoyServer
from recommender.server.heartbeat import beat
from recommender.server.process import HELD_SECONDS, ExitCode, spare_collections, stopping_on_signals
from recommender.server.server import Server
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings
from recommender.threads import background_works


def worker(number: Annotated[int, typer.Argument(help="Which of the supervisor's servers this is.")]) -> None:
    """Serve as one of several; started by `recommender serve` with RECOMMENDER_WORKERS."""
    _serve(load_settings(), number)


def serve_alone(settings: Settings) -> NoReturn:
    """Serve without a supervisor until a signal; ends the process."""
    _serve(settings, None)


def _serve(settings: Settings, worker: int | None) -> NoReturn:
    otlp = loaded(lambda: Otlp.load(worker))

    async def main() -> tuple[ExitCode, bool]:
        async with open_log(settings, worker=worker, hold=HELD_SECONDS) as lines:
            server: Server | EnvoyServer
            if settings.network.edge == "envoy":
                server = EnvoyServer(settings, otlp=otlp)
            else:
                server = Server(settings, otlp=otlp, shared_port=worker is not None)
            async with stopping_on_signals(server):
                return await serve_until_stopped(server, lines)

    async def serve_until_stopped(server: Server | EnvoyServer, lines: Writer) -> tuple[ExitCode, bool]:
        beating = asyncio.create_task(beat(server)) if worker is not None and isinstance(server, Server) else None
        try:
            await server.start()
            lines.release()
            spare_collections()
            with failures_logged():
                code = await server.run()
                return code, await server.close()
        finally:
            if beating is not None:
                beating.cancel()

    code, ended = run(main())
    if not ended or background_works():
        # A native call that hangs cannot be joined: it would keep the process from ending, or crash it.
        os._exit(code)
    raise typer.Exit(code)
