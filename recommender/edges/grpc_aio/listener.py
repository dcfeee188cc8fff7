"""The grpc.aio server around an edge: its port, TLS, health, reflection, limits, and how it leaves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from recommender.api.metadata import SERVICE_NAME
from recommender.api.service import RecommenderService
from recommender.edges.address import address_of, cannot_listen
from recommender.edges.calls import Calls
from recommender.edges.grpc_aio.edge import GrpcEdge, enter
from recommender.edges.listener import Connections
from recommender.edges.reflection import add_reflection
from recommender.security.access import Access
from recommender.security.certificates import Certificates
from recommender.settings.settings import Settings

_STREAM_WINDOW = 262_144
"""Bytes that a caller may send ahead of the server's reading: a thousand histories of a hundred items in one go."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may do, and how long it may last. Times are milliseconds; 0 is no limit.

    gRPC spreads the age of connections by a tenth, so that those opened together do not end together.
    """

    message_bytes: int = 4_194_304
    metadata_bytes: int = 16_384
    streams: int = 1024
    age: int = 0
    age_grace: int = 0
    idle: int = 0
    keepalive: int = 0
    least_ping_interval: int = 10_000
    handshake: int = 10_000


class GrpcListener:
    """Listens with grpc.aio. `default_timeout` (seconds), `most_open`, `most_streams` and `rpcs` are the edge's.

    With `access` every call needs a token, save health where `open_health` says so. With `use_certificates` before
    `listen` the port speaks TLS only. `shared_port` lets other processes listen on the same port.
    """

    def __init__(
        self,
        *,
        default_timeout: float,
        most_open: int,
        most_streams: int = 1024,
        rpcs: Calls | None = None,
        limits: ConnectionLimits | None = None,
        access: Access | None = None,
        open_health: bool = True,
        reflection: bool = True,
        shared_port: bool = False,
    ) -> None:
        self._edge = GrpcEdge(
            default_timeout=default_timeout, most_open=most_open, most_streams=most_streams, rpcs=rpcs, access=access
        )
        self._health = _Health(None if open_health else access)
        self._certificates: Certificates | None = None
        self._server = grpc.aio.server(options=_options(limits or ConnectionLimits(), shared_port=shared_port))
        self._edge.add_to(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            add_reflection(self._server, (SERVICE_NAME, health.SERVICE_NAME), access)

    def use_certificates(self, certificates: Certificates) -> None:
        """Prove the server with these from the next connection on."""
        self._certificates = certificates

    async def listen(self, host: str, port: int) -> int:
        """Take calls from now on, not serving; the port, which is new if it was 0. Raises StartError."""
        address = address_of(host, port)
        try:
            if self._certificates is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, self._credentials(self._certificates))
        except RuntimeError as error:
            raise cannot_listen(address) from error
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        return bound

    def open(self, service: RecommenderService) -> None:
        """Answer calls with this service from now on."""
        self._edge.open(service)

    async def turn_serving(self) -> None:
        """Tell who asks for health, or watches it, that requests are answered."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def turn_unready(self) -> None:
        """Tell who asks for health, or watches it, that this server leaves; final."""
        await self._health.enter_graceful_shutdown()

    def drain(self) -> None:
        """Read no more from open streams."""
        self._edge.drain()

    async def connections(self) -> Connections | None:
        """None: grpc.aio does not tell of them."""
        return None

    async def stop(self, grace: float) -> None:
        """Take no more calls, and give those that are open `grace` seconds to finish."""
        await self._server.stop(grace)

    def end_watches(self) -> None:
        """End the calls that watch health: they would hold up a stop."""
        self._health.end_watches()

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)

    def _credentials(self, first: Certificates) -> grpc.ServerCredentials:
        """Credentials that are looked up for every connection: gRPC asks in a thread of its own."""
        used = first

        def newer() -> Any:  # noqa: ANN401 (None stands for the former ones, which the stubs of grpc do not know)
            nonlocal used
            if self._certificates is None or self._certificates is used:
                return None
            used = self._certificates
            return _configuration(used)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(first), newer, require_client_authentication=first.client_authorities is not None
        )


class _Health(health.aio.HealthServicer):
    """The library's health service, behind `access` if there is one.

    Its Watch calls would hold up a server that stops, so that they can be ended.
    """

    def __init__(self, access: Access | None) -> None:
        super().__init__()
        self._access = access
        self._watches: set[asyncio.Task[None]] = set()

    async def Check(  # noqa: N802 (gRPC names methods so)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The status now."""
        if self._access is None:
            return await super().Check(request, context)
        with await enter(self._access, context):
            return await super().Check(request, context)

    async def Watch(  # noqa: N802 (gRPC names methods so)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Send the status now and whenever it changes, until the caller leaves or `end_watches`."""
        if self._access is None:
            return await self._watch(request, context)
        with await enter(self._access, context):
            return await self._watch(request, context)

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        watch = asyncio.create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
        finally:
            watch.cancel()
            self._watches.discard(watch)

    def end_watches(self) -> None:
        """End every Watch call as if all had been said."""
        for watch in self._watches:
            watch.cancel()


def grpc_listener(settings: Settings, rpcs: Calls, access: Access | None, *, shared_port: bool = False) -> GrpcListener:
    """Build the listener that these settings describe."""
    return GrpcListener(
        default_timeout=settings.network.default_timeout_ms / 1e3,
        most_open=settings.network.max_stream_requests,
        most_streams=settings.network.max_streams,
        rpcs=rpcs,
        limits=ConnectionLimits(
            message_bytes=settings.network.max_message_bytes,
            metadata_bytes=settings.network.max_metadata_bytes,
            streams=settings.network.max_connection_calls,
            age=settings.network.max_connection_age_ms,
            age_grace=settings.network.max_connection_age_grace_ms,
            idle=settings.network.max_connection_idle_ms,
            keepalive=settings.network.keepalive_ms,
            least_ping_interval=settings.network.min_ping_interval_ms,
            handshake=settings.network.handshake_timeout_ms,
        ),
        access=access,
        open_health=not settings.network.health_needs_token,
        reflection=settings.network.reflection,
        shared_port=shared_port,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], root_certificates=certificates.client_authorities
    )


def _options(limits: ConnectionLimits, *, shared_port: bool) -> tuple[tuple[str, int], ...]:
    options = [
        # Else a second server would share the port in silence.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_receive_message_length", limits.message_bytes),
        # A window that grows with the line holds tens of megabytes of a message that will be refused.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _STREAM_WINDOW),
        # Between the two limits gRPC would refuse by chance.
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", limits.least_ping_interval),
        ("grpc.server_handshake_timeout_ms", limits.handshake),
    ]
    lasting = (
        ("grpc.max_connection_age_ms", limits.age),
        ("grpc.max_connection_age_grace_ms", limits.age_grace),
        ("grpc.max_connection_idle_ms", limits.idle),
        ("grpc.keepalive_time_ms", limits.keepalive),
    )
    return (*options, *((name, value) for name, value in lasting if value))
