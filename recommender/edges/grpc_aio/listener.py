"""The grpc.aio server: port, TLS, connection limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc

from recommender.edges.address import address_of, cannot_listen
from recommender.edges.calls import CallSampler
from recommender.edges.grpc_aio.calls import OpenCalls
from recommender.edges.grpc_aio.edge import add_methods
from recommender.edges.grpc_aio.spans import ServerSpans
from recommender.edges.listener import Connections
from recommender.edges.method import Method
from recommender.settings.network import NetworkSettings

if TYPE_CHECKING:  # the health port needs none
    from recommender.security.certificates import Certificates

_STREAM_WINDOW = 262_144
"""Bytes that a caller may send ahead of the server's reads: a thousand histories of a hundred items."""

_ABANDONED = 4096
"""Most abandoned calls of a connection that have not ended here yet, in addition to its open calls."""


class GrpcListener:
    """Listens with grpc.aio, within the connection limits of `settings`.

    The port uses TLS only if `use_certificates` is called before `listen`. `shared_port` lets other processes listen on
    the same port. Calls that `sampler` selects have a span of gRPC's stock interceptor.
    """

    def __init__(
        self,
        methods: Iterable[Method],
        settings: NetworkSettings,
        sampler: CallSampler | None = None,
        *,
        shared_port: bool = False,
    ) -> None:
        self._certificates: Certificates | None = None
        options = port_options(
            settings,
            calls=settings.max_connection_calls,
            message_bytes=settings.max_message_bytes,
            metadata_bytes=settings.max_metadata_bytes,
            shared_port=shared_port,
        )
        self._server = grpc.aio.server(options=options)
        self._calls = OpenCalls(settings.max_message_bytes)
        add_methods(self._server, methods, self._calls, None if sampler is None else ServerSpans(sampler))

    def use_certificates(self, certificates: Certificates) -> None:
        """Present these certificates from the next connection on."""
        self._certificates = certificates

    async def listen(self, host: str, port: int) -> int:
        """Take calls. Returns the bound port; 0 asks for a free one. Raises StartError."""
        address = address_of(host, port)
        try:
            if self._certificates is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, self._credentials(self._certificates))
        except RuntimeError as error:
            raise cannot_listen(address) from error
        self._calls.port = bound
        await self._server.start()
        return bound

    async def connections(self) -> Connections | None:
        """Return None: grpc.aio has no connection counts."""
        return None

    async def stop(self, grace: float) -> None:
        """Take no more calls; give open ones `grace` seconds to finish."""
        await self._calls.stop(grace)
        await self._server.stop(0)

    def _credentials(self, first: Certificates) -> grpc.ServerCredentials:
        """Credentials that are looked up for every connection, by a thread of gRPC's."""
        used = first

        def newer() -> Any:  # noqa: ANN401 (None keeps the previous ones, which grpc's stubs do not know)
            nonlocal used
            if self._certificates is None or self._certificates is used:
                return None
            used = self._certificates
            return _configuration(used)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(first), newer, require_client_authentication=first.client_authorities is not None
        )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], root_certificates=certificates.client_authorities
    )


def port_options(
    network: NetworkSettings, *, calls: int, message_bytes: int, metadata_bytes: int, shared_port: bool = False
) -> tuple[tuple[str, int], ...]:
    """Channel options of a server: the settings' limits of time, and the most that a connection or a call may hold."""
    options = [
        # Otherwise a second server would silently share the port.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_receive_message_length", message_bytes),
        # A window that grows with bandwidth buffers tens of megabytes of a message that will be refused.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _STREAM_WINDOW),
        # Headers that cannot be parsed would stay in the table, and fail every later call that refers to their names.
        ("grpc.http2.hpack_table_size.decoder", 0),
        # Between two different limits gRPC refuses at random.
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        ("grpc.max_concurrent_streams", calls),
        # Calls that their callers have abandoned, and that still are to end here, are not to keep others out.
        ("grpc.http2.max_deallocating_streams", calls + _ABANDONED),
        ("grpc.max_allowed_incoming_connections", network.max_connections),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", network.min_ping_interval_ms),
        ("grpc.server_handshake_timeout_ms", network.handshake_timeout_ms),
        # Until a client has acknowledged the limits of metadata and calls, gRPC does not hold it to them.
        ("grpc.http2.settings_timeout", network.handshake_timeout_ms),
    ]
    # gRPC varies the age by a tenth, so connections opened together do not end together.
    lasting = (
        ("grpc.max_connection_age_ms", network.max_connection_age_ms),
        ("grpc.max_connection_age_grace_ms", network.max_connection_age_grace_ms),
        ("grpc.max_connection_idle_ms", network.max_connection_idle_ms),
        ("grpc.keepalive_time_ms", network.keepalive_ms),
    )
    return (*options, *((name, value) for name, value in lasting if value))
