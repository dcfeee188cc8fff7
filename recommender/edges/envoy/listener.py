"""Envoy's listener as the server inside Envoy's process drives it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls
from recommender.edges.envoy.admin import EnvoyAdmin
from recommender.edges.envoy.application import AsgiEdge
from recommender.edges.envoy.config import LISTENER, STAT_PREFIX
from recommender.edges.envoy.tls import write_secrets
from recommender.edges.listener import Connections
from recommender.errors import StartError
from recommender.security.access import Access
from recommender.security.certificates import Certificates
from recommender.settings.settings import Settings

ADMIN = "admin"
"""The socket of Envoy's administration in the folder of an Order."""
_CALLERS = f"http.{STAT_PREFIX}.downstream_"
"""What Envoy's names of counts of its callers begin with."""
_COUNT_SECONDS = 1.0
"""How long Envoy may take to tell what it has counted: threads that wait for it must not pile up."""
_POLL_SECONDS = 0.01
_LISTEN_SECONDS = 30.0
_FLUSH_SECONDS = 1.0
"""How long Envoy may take to send what it was given."""


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


def envoy_listener(
    settings: Settings, rpcs: Calls, access: Access | None, folder: Path
) -> tuple[AsgiEdge, EnvoyListener]:
    """Build the ASGI edge that these settings describe, and the listener of the Envoy that shares `folder`."""
    edge = AsgiEdge(
        default_timeout=settings.network.default_timeout_ms / 1e3,
        most_open=settings.network.max_stream_requests,
        max_message_bytes=settings.network.max_message_bytes,
        most_streams=settings.network.max_streams,
        rpcs=rpcs,
        access=access,
        open_health=not settings.network.health_needs_token,
        reflection=settings.network.reflection,
    )
    return edge, EnvoyListener(edge, folder)


async def _until(true: Callable[[], Awaitable[bool]], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await true():  # noqa: ASYNC110 (Envoy tells nobody, it must be asked)
                await asyncio.sleep(_POLL_SECONDS)
