"""Envoy's listener, driven from inside Envoy's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from recommender.edges.envoy.admin import EnvoyAdmin
from recommender.edges.envoy.application import AsgiEdge
from recommender.edges.envoy.config import LISTENER, STAT_PREFIX
from recommender.edges.envoy.tls import write_secrets
from recommender.edges.listener import Connections
from recommender.errors import StartError
from recommender.security.certificates import Certificates

ADMIN = "admin"
"""The socket of Envoy's administration, in the shared folder."""
_CALLERS = f"http.{STAT_PREFIX}.downstream_"
"""Prefix of Envoy's counters of callers."""
_COUNT_SECONDS = 1.0
"""How long Envoy may take to report its counters: threads that wait for it must not pile up."""
_POLL_SECONDS = 0.01
_KEYS_IN_USE = 2
"""Private keys kept in memory: Envoy may still read the previous one."""
_LISTEN_SECONDS = 30.0
_FLUSH_SECONDS = 1.0
"""How long Envoy may take at the end of the grace to flush what it was given."""


class EnvoyListener:
    """The listener of the Envoy that embeds this interpreter; `folder` is shared with it."""

    def __init__(self, edge: AsgiEdge, folder: Path) -> None:
        self._edge = edge
        self._folder = folder
        self._admin = EnvoyAdmin(folder / ADMIN)
        self._keys: list[int] = []
        self._stopped = False
        self._counts = EnvoyAdmin(folder / ADMIN, patience=_COUNT_SECONDS)

    def use_certificates(self, certificates: Certificates) -> None:
        """Present these certificates from the next connection on."""
        key = write_secrets(self._folder, certificates)
        if key is not None:
            self._keys.append(key)
        if len(self._keys) > _KEYS_IN_USE:
            os.close(self._keys.pop(0))

    async def listen(self, host: str, port: int) -> int:
        """Wait until Envoy takes connections. Returns its port. Raises StartError."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LISTEN_SECONDS):
                while True:
                    with contextlib.suppress(OSError):
                        if (bound := await self._admin.port(LISTENER)) is not None:
                            return bound
                    await asyncio.sleep(_POLL_SECONDS)
        raise StartError(f"Envoy did not listen on {host} port {port} within {_LISTEN_SECONDS:.0f} s; its log says why")

    async def connections(self) -> Connections:
        """Read Envoy's counters. Raises OSError if it does not answer."""
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
        """Take no more connections, and give open calls `grace` seconds to finish and to arrive.

        A no-op after the first call.
        """
        if self._stopped:
            return
        self._stopped = True
        end = time.monotonic() + grace
        with contextlib.suppress(OSError):  # without an Envoy there is nothing left to close
            await self._admin.turn_away()
            await self._admin.close_listeners()
            await _until(self._answered, end - _FLUSH_SECONDS)
            await _until(self._sent, min(end, time.monotonic() + _FLUSH_SECONDS))

    async def _answered(self) -> bool:
        return self._edge.calls == 0

    async def _sent(self) -> bool:
        return not (await self._admin.counts(_CALLERS, ("rq_active",)))["rq_active"]


async def _until(true: Callable[[], Awaitable[bool]], end: float) -> None:
    """Wait until something is true, or until this time of `time.monotonic`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(end - time.monotonic()):
            while not await true():  # noqa: ASYNC110 (Envoy has no events, it must be polled)
                await asyncio.sleep(_POLL_SECONDS)
