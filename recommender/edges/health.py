"""`grpc.health.v1` without a transport: one status for the whole server, for who asks and who watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """The status of these services, and of the server under the empty name; NOT_SERVING until `turn`."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._services = ("", *services)
        self._serving = False
        self._left = False
        self._ended = False
        self._changed = asyncio.Event()

    def turn(self, *, serving: bool) -> None:
        """Change the status; once a server leaves it stays unready."""
        self._serving = serving and not self._left
        self._left = self._left or not serving
        self._tell()

    def end_watches(self) -> None:
        """End every `watch` after the status that it has to tell."""
        self._ended = True
        self._tell()

    def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse | None:
        """The status of a service; None if there is no such service."""
        return None if request.service not in self._services else self._response(request)

    async def watch(self, request: health_pb2.HealthCheckRequest) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes."""
        told: health_pb2.HealthCheckResponse | None = None
        while True:
            response = self._response(request)
            if response != told:
                yield response
                told = response
            elif self._ended:
                return
            else:
                await self._changed.wait()

    def _response(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._serving:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
