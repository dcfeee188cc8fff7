"""The server inside Envoy's process: what pyvoy calls, and how it hears from the process that started Envoy.

Envoy embeds the interpreter and owns its signals. So the supervisor in `envoy.py`, at the other end of the socket on
file descriptor 0, says what to serve and when to stop, and is told what came of it. If it dies, so does this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls
from recommender.edges.envoy.admin import EnvoyAdmin
from recommender.edges.envoy.application import AsgiEdge
from recommender.edges.envoy.call import Receive, Scope, Send
from recommender.edges.envoy.config import LISTENER, STAT_PREFIX
from recommender.edges.envoy.tls import write_secrets
from recommender.errors import StartError
from recommender.observability.log import set_up_logging
from recommender.observability.metrics import Connections
from recommender.security.access import Access
from recommender.security.certificates import Certificates
from recommender.server.process import ExitCode, spare_collections
from recommender.server.server import Server
from recommender.settings.settings import Otlp, Settings

log = structlog.get_logger(__name__)

_SUPERVISOR = 0
"""The file descriptor of our end of the socket."""
ADMIN = "admin"
"""The socket of Envoy's administration in the folder of an Order."""
_CALLERS = f"http.{STAT_PREFIX}.downstream_"
"""What Envoy's names of counts of its callers begin with."""
_COUNT_SECONDS = 1.0
"""How long Envoy may take to tell what it has counted: threads that wait for it must not pile up."""
_POLL_SECONDS = 0.01
_LISTEN_SECONDS = 30.0
_LAST_LINES_SECONDS = 1.0
"""How long the last lines of the log may take to be written."""
_FLUSH_SECONDS = 1.0
"""How long Envoy may take to send what it was given."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the supervisor wants served and told of.

    `executable` is the interpreter, and `folder` what Envoy and we share.
    """

    settings: Settings
    otlp: Otlp
    executable: str
    folder: Path


class EnvoyListener:
    """Envoy's listener around an ASGI application."""

    def __init__(self, application: AsgiEdge, folder: Path) -> None:
        self._application = application
        self._folder = folder
        self._admin = EnvoyAdmin(folder / ADMIN)
        self._counts = EnvoyAdmin(folder / ADMIN, patience=_COUNT_SECONDS)

    def use_certificates(self, certificates: Certificates) -> None:
        """Prove the server with these from the next connection on."""
        write_secrets(self._folder, certificates)

    async def listen(self, host: str, port: int) -> int:
        """Wait until Envoy takes connections; its port."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LISTEN_SECONDS):
                while True:
                    with contextlib.suppress(OSError):
                        if (bound := await self._admin.port(LISTENER)) is not None:
                            return bound
                    await asyncio.sleep(_POLL_SECONDS)
        raise StartError(f"Envoy did not listen on {host} port {port} within {_LISTEN_SECONDS:.0f} s; its log says why")

    def open(self, service: RecommenderService) -> None:
        """Answer calls with this service from now on."""
        self._application.open(service)

    async def turn_serving(self) -> None:
        """Tell who asks for health, or watches it, that requests are answered."""
        self._application.health.turn(serving=True)

    async def turn_unready(self) -> None:
        """Tell who asks for health, or watches it, that this server leaves; final."""
        self._application.health.turn(serving=False)

    def drain(self) -> None:
        """Read no more from open streams."""
        self._application.drain()

    def end_watches(self) -> None:
        """End the calls that watch health."""
        self._application.health.end_watches()

    async def connections(self) -> Connections:
        """What Envoy has counted. Raises OSError if it does not answer."""
        cut = {"client": "cx_destroy_remote_active_rq", "server": "cx_destroy_local_active_rq"}
        resets = {"client": "rq_rx_reset", "server": "rq_tx_reset"}
        seen = await self._counts.counts(_CALLERS, ("cx_active", "cx_total", *cut.values(), *resets.values()))
        return Connections(
            open=seen["cx_active"],
            opened=seen["cx_total"],
            cut={side: seen[name] for side, name in cut.items()},
            resets={side: seen[name] for side, name in resets.items()},
        )

    async def stop(self, grace: float) -> None:
        """Take no more connections, give open calls `grace` seconds to finish, and let Envoy send their ends."""
        with contextlib.suppress(OSError):  # without an Envoy there is nothing left to close
            await self._admin.turn_away()
            await self._admin.close_listeners()
            await _until(self._answered, grace)
            await _until(self._sent, _FLUSH_SECONDS)

    async def _answered(self) -> bool:
        return self._application.calls == 0

    async def _sent(self) -> bool:
        return not (await self._admin.counts(_CALLERS, ("rq_active",)))["rq_active"]


class Embedded:
    """The ASGI application that pyvoy loads: its lifespan is the server's life."""

    _asgi_single_callable = True

    def __init__(self) -> None:
        self._application: AsgiEdge | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Answer a request; or live, which is what pyvoy asks for first."""
        return self._live(receive, send) if self._application is None else self._application(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=_SUPERVISOR))
        size = int.from_bytes(await reader.readexactly(8), "big")
        order: Order = pickle.loads(await reader.readexactly(size))  # noqa: S301 (from the process that started us)
        settings = order.settings
        sys.executable = order.executable  # Envoy is no interpreter to start others with
        lines = set_up_logging(settings.log_level, settings.log_format)

        def listener(rpcs: Calls, access: Access | None) -> EnvoyListener:
            self._application = AsgiEdge(
                default_timeout=settings.default_timeout_ms / 1e3,
                most_open=settings.max_stream_requests,
                max_message_bytes=settings.max_message_bytes,
                most_streams=settings.max_streams,
                rpcs=rpcs,
                access=access,
                open_health=not settings.health_needs_token,
                reflection=settings.reflection,
            )
            return EnvoyListener(self._application, order.folder)

        server = Server(settings, listener, order.otlp)

        async def finish() -> None:
            await asyncio.to_thread(lines.finish, _LAST_LINES_SECONDS)

        serving = asyncio.create_task(_serve(server, reader, lambda told: _tell(writer, told), finish))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        serving.cancel()
        await asyncio.wait({serving})
        await finish()
        await send({"type": "lifespan.shutdown.complete"})


async def _serve(
    server: Server,
    reader: asyncio.StreamReader,
    tell: Callable[[Mapping[str, object]], Awaitable[None]],
    finish: Callable[[], Awaitable[None]],
) -> None:
    """Serve from start to end, and tell the supervisor of both; of the end when nothing is left to log."""
    obeying = asyncio.create_task(_obey(server, reader))
    try:
        try:
            await server.start()
        except StartError as error:
            await tell({"refused": str(error)})
            return
        spare_collections()
        await tell({"port": server.port, "metrics_port": server.metrics_port})
        code = await server.run()
        ended = await server.close()
        await finish()
        await tell({"code": code, "ended": ended})
    except Exception as error:
        log.exception("the server failed", exc_info=error)
        await finish()
        await tell({"code": ExitCode.EDGE_LOST, "ended": False})
        raise
    finally:
        obeying.cancel()


async def _obey(server: Server, reader: asyncio.StreamReader) -> None:
    """Stop when told to; with nobody left to tell, end at once."""
    with contextlib.suppress(OSError):  # a reset is an end too
        while await reader.readline():
            server.stop()
    os.kill(os.getpid(), signal.SIGKILL)


async def _tell(writer: asyncio.StreamWriter, told: Mapping[str, object]) -> None:
    writer.write(json.dumps(told).encode() + b"\n")
    with contextlib.suppress(OSError):  # who is gone is noticed by who reads
        await writer.drain()


async def _until(true: Callable[[], Awaitable[bool]], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await true():  # noqa: ASYNC110 (Envoy tells nobody, it must be asked)
                await asyncio.sleep(_POLL_SECONDS)


app = Embedded()
