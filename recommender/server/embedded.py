"""The server inside Envoy's process: the ASGI application that pyvoy loads.

Envoy embeds the interpreter and owns its signals. So the supervisor in `envoy.py` sends an `Order` and the stop over
the socket on file descriptor 0, and reads the outcome from it. If the supervisor dies, so does this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from recommender.edges.envoy.application import AsgiEdge
from recommender.edges.envoy.asgi import Receive, Scope, Send
from recommender.edges.envoy.listener import EnvoyListener
from recommender.edges.methods import Methods
from recommender.errors import StartError
from recommender.observability.log import Writer, set_up_logging
from recommender.server.process import HELD_SECONDS, ExitCode, spare_collections
from recommender.server.server import Server
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings

log = structlog.get_logger(__name__)

_SUPERVISOR = 0
"""File descriptor of this end of the socket."""
_LAST_LINES_SECONDS = 1.0
"""How long flushing the log may take."""


@dataclass(frozen=True, slots=True)
class Order:
    """The supervisor's order to Envoy's Python. `executable` is the interpreter; `folder` is shared with Envoy."""

    settings: Settings
    otlp: Otlp
    executable: str
    folder: Path


class Embedded:
    """Runs the server for the lifespan of the ASGI application."""

    _asgi_single_callable = True

    def __init__(self) -> None:
        self._edge: AsgiEdge | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Answer a request, or run the lifespan, which pyvoy starts first."""
        return self._live(receive, send) if self._edge is None else self._edge(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=_SUPERVISOR))
        size = int.from_bytes(await reader.readexactly(8), "big")
        order: Order = pickle.loads(await reader.readexactly(size))  # noqa: S301 (from the process that started us)
        settings = order.settings
        sys.executable = order.executable  # the default is Envoy's program, which cannot start child interpreters
        lines = set_up_logging(settings.operations.log_level, settings.operations.log_format, hold=HELD_SECONDS)

        def listener(methods: Methods) -> EnvoyListener:
            network = settings.network
            self._edge = AsgiEdge(
                methods,
                max_message_bytes=network.max_message_bytes,
                max_metadata_bytes=network.max_metadata_bytes,
                web=network.web,
            )
            return EnvoyListener(self._edge, order.folder)

        def compose() -> Server:
            return Server(settings, listener, order.otlp)

        serving = asyncio.create_task(_serve(compose, reader, lambda told: _tell(writer, told), lines, order.folder))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        serving.cancel()
        await asyncio.wait({serving})
        try:
            await _finish(lines)
        finally:
            await send({"type": "lifespan.shutdown.complete"})


async def _serve(
    compose: Callable[[], Server],
    reader: asyncio.StreamReader,
    tell: Callable[[Mapping[str, object]], Awaitable[None]],
    lines: Writer,
    folder: Path,
) -> None:
    """Serve until the end, and report start and end to the supervisor; the end once the log is flushed."""
    obeying: asyncio.Task[None] | None = None
    try:
        try:
            server = compose()
            obeying = asyncio.create_task(_obey(server, reader, folder))
            await server.start()
        except StartError as error:
            lines.drop()
            await tell({"refused": str(error)})
            return
        lines.release()
        spare_collections()
        await tell({"port": server.port, "metrics_port": server.metrics_port})
        code = await server.run()
        ended = await server.close()
        await _finish(lines)
        await tell({"code": code, "ended": ended})
    except Exception as error:
        log.exception("the server failed", exc_info=error)
        try:
            await _finish(lines)
        finally:  # without a thread too: the supervisor waits for it
            await tell({"code": ExitCode.EDGE_LOST, "ended": False})
        raise
    finally:
        if obeying is not None:
            obeying.cancel()


async def _finish(lines: Writer) -> None:
    await asyncio.to_thread(lines.finish, _LAST_LINES_SECONDS)


async def _obey(server: Server, reader: asyncio.StreamReader, folder: Path) -> None:
    """Stop on a signal; if the supervisor is gone, remove its folder, and kill this process."""
    with contextlib.suppress(OSError):  # a reset is an end of file too
        while await reader.readline():
            server.stop()
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


async def _tell(writer: asyncio.StreamWriter, told: Mapping[str, object]) -> None:
    writer.write(json.dumps(told).encode() + b"\n")
    with contextlib.suppress(OSError):  # `_obey` notices that the supervisor is gone
        await writer.drain()


app = Embedded()
