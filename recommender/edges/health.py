"""`grpc.health.v1` without a transport: Check and Watch.

No status change waits for a watcher: each one gets the latest status when it reads again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable
from typing import TypeAlias

from google.rpc import code_pb2
from grpc_health.v1 import health_pb2

from recommender.api.messages import decoded
from recommender.edges.calls import ProtocolError
from recommender.edges.guests import Guests
from recommender.edges.method import Enter, Messages, Method, Send, Streaming, Unary, only
from recommender.errors import QuotaError, quoted

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_LAST_STATUS_SECONDS = 0.1
"""How long a watcher may take to read its last status."""

MOST_BYTES = 4096
"""Bytes of a request, which is a name; callers need no token for it."""
_MOST_WATCHES = 1024
"""Watches that may be open; an idle one takes some 25 kB."""
_RETRY_SECONDS = 5.0
"""When to retry a watch that was refused because too many are open."""

_Status: TypeAlias = health_pb2.HealthCheckResponse
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = (
    _Status(status=status) for status in (_Status.SERVING, _Status.NOT_SERVING, _Status.SERVICE_UNKNOWN)
)


class Health:
    """A status for each of some services; NOT_SERVING until `turn`. The empty name is the whole server."""

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses: dict[str, _Status] = dict.fromkeys(names, _NOT_SERVING)
        self._left = False
        self._ended = False
        self._changed = asyncio.Event()
        self._watches: set[asyncio.Timeout] = set()
        self.guests = Guests()
        """Admits callers that need no token."""

    def serving(self, name: str = "") -> bool:
        """Whether a service is reported as SERVING."""
        return self._statuses.get(name) is _SERVING

    def turn(self, *names: str, serving: bool) -> None:
        """Set the status of these services, or of all if none is named; a no-op after `leave`."""
        if not self._left:
            self._statuses |= dict.fromkeys(names or self._statuses, _SERVING if serving else _NOT_SERVING)
            self._wake()

    def leave(self) -> None:
        """Report NOT_SERVING for every service, for good."""
        self.turn(serving=False)
        self._left = True

    def end_watches(self) -> None:
        """End every Watch after its latest status; one that does not read it is dropped."""
        if not self._ended:
            self._ended = True
            self._wake()
            last = asyncio.get_running_loop().time() + _LAST_STATUS_SECONDS
            for watch in self._watches:
                watch.reschedule(last)

    def methods(self, enter: Enter | None = None, timeout: float = math.inf) -> tuple[Method, ...]:
        """Return the RPCs of the health service; see `Method` for the arguments. Without `enter` callers are guests."""
        enter = enter or self.guests.enter
        return (
            Unary(path=f"/{SERVICE_NAME}/Check", answer=self._check, enter=enter, timeout=timeout, largest=MOST_BYTES),
            Streaming(
                path=f"/{SERVICE_NAME}/Watch", serve=self._watch, enter=enter, asked_once=True, largest=MOST_BYTES
            ),
        )

    async def _check(self, message: bytes, _deadline: float, _request_id: str) -> _Status:
        request = decoded(health_pb2.HealthCheckRequest, message)
        status = self._statuses.get(request.service)
        if status is None:
            raise ProtocolError(code_pb2.NOT_FOUND, f"there is no service {quoted(request.service)} here")
        return status

    async def _watch(self, messages: Messages, send: Send) -> None:
        service = decoded(health_pb2.HealthCheckRequest, await only(messages)).service
        if len(self._watches) >= _MOST_WATCHES:
            raise QuotaError(f"{_MOST_WATCHES} watches are open, which is the limit", _RETRY_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_STATUS_SECONDS if self._ended else None) as watch:
                self._watches.add(watch)
                try:
                    await self._follow(service, send)
                finally:
                    self._watches.discard(watch)

    async def _follow(self, service: str, send: Send) -> None:
        """Send the status of a service, and again whenever it has changed, until watches end."""
        sent: _Status | None = None
        while True:
            status = self._statuses.get(service, _SERVICE_UNKNOWN)
            if status is not sent:
                await send(status)
                sent = status
            elif self._ended:
                return
            else:
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
