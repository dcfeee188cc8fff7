"""Settings of the port: address, edge, TLS, tokens, and limits of one caller."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from recommender.errors import SettingsError
from recommender.settings.group import Group

Edge: TypeAlias = Literal["grpc", "envoy"]
"""Which edge accepts calls: grpc.aio, or Envoy with Python embedded."""

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


class NetworkSettings(Group):
    """Settings of the edges, the health probes and TLS."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on. The default accepts calls from this machine only. A container needs 0.0.0.0, and then TLS
    or RECOMMENDER_PLAINTEXT=true. 0.0.0.0 and :: both mean every address, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """TCP port to listen on. 0 takes a free port; the log names it."""
    edge: Edge = "grpc"
    """Which edge accepts calls: grpc (grpc.aio) or envoy (Envoy's HTTP/2 in a separate process with Python embedded).
    Envoy takes half the CPU a call with a fast model, and needs recommender[envoy]."""
    web: bool = False
    """Whether the port also accepts gRPC-Web and JSON, for browsers, curl and other callers without gRPC:
    docs/browsers.md. Only with RECOMMENDER_EDGE=envoy."""
    cors_origins: str = ""
    """Origins whose pages may call from a browser, separated by commas, exactly as a browser sends them:
    `https://shop.example`. Empty: only the server's own. Needs RECOMMENDER_WEB=true."""
    tls_certificate: Path | None = None
    """PEM file of the server's certificate and its intermediate certificates. With it the port accepts TLS 1.2 and 1.3
    only. Replaced files are reloaded without a restart."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities that must have signed callers' certificates (mutual TLS). Empty: callers need no
    certificate."""
    plaintext: bool = False
    """Whether the server may listen beyond loopback without TLS. Only for networks where something else encrypts, such
    as a service mesh or a proxy: plaintext exposes tokens."""
    tokens_file: Path | None = None
    """TOML file of valid tokens, one table for each name; `recommender token` writes one. With it every call except
    health needs a token. Changes are reloaded without a restart."""
    health_needs_token: bool = False
    """Whether health calls need a token too. Few load balancers can send one."""
    reflection: bool = True
    """Whether the service describes itself to grpcurl and similar clients (with a token, if calls need one). Turn it
    off to hide the API from untrusted clients."""
    open_inference: bool = True
    """Whether the port also offers the Open Inference Protocol, for clients and platforms of KServe and Triton:
    docs/open-inference-protocol.md. Turn it off if no caller uses it."""
    secrets_reload_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 10_000
    """Milliseconds between checks of the certificate and token files. A revoked token stays valid for that long; a
    check costs some microseconds."""
    max_stream_requests: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Most open requests of one stream: read, with replies not yet taken. Beyond it the stream is not read, so a slow
    reader costs no memory. Twice the batch size keeps batches full."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4_194_304
    """Most bytes of one message; gRPC refuses a larger one with RESOURCE_EXHAUSTED before reading it. The default is
    gRPC's own and holds a million ids."""
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=1_048_576)] = 16_384
    """Most bytes of a call's metadata (headers); more is refused with RESOURCE_EXHAUSTED. The default has room for a
    long token and tracing."""
    max_streams: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Most open StreamRecommend calls; one more is refused with RESOURCE_EXHAUSTED. An idle open stream takes some 50
    kB."""
    max_connection_calls: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Most open calls of one connection; the client holds back more. By default one connection can just fill the
    backlog: raise it with RECOMMENDER_MAX_BACKLOG behind a proxy."""
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Most open connections; one more is closed at once. It bounds what callers hold in a process: docs/security.md has
    the sum. `ulimit -n` must allow as many."""
    max_connection_age_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 1_800_000
    """Milliseconds after which a client is asked to reconnect, plus or minus a tenth. 0: never. It spreads long-lived
    clients over newer servers: lower it if servers come and go."""
    max_connection_age_grace_ms: Annotated[int, Field(ge=1, le=86_400_000)] = 600_000
    """Milliseconds in which a connection that reached its age may finish its calls; then they end with UNAVAILABLE.
    Only streams last that long: clients reopen them."""
    max_connection_idle_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 900_000
    """Milliseconds after which a connection without a call is closed. 0: never. It frees forgotten connections; clients
    reconnect automatically."""
    keepalive_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 60_000
    """Milliseconds of silence after which the server pings a client, and drops the connection without an answer within
    20 seconds. 0: two hours. It frees the calls of machines that vanished."""
    min_ping_interval_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 10_000
    """Least milliseconds between a client's pings; one that pings more often is disconnected (ENHANCE_YOUR_CALM). Pings
    cost CPU, and load balancers need one in about 30 seconds."""
    handshake_timeout_ms: Annotated[int, Field(ge=100, le=600_000)] = 10_000
    """Milliseconds for the TLS and HTTP/2 handshake of a new connection, which is then closed. On the Envoy edge the
    headers of a call have the same time."""
    default_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 5_000
    """Deadline in milliseconds of a call that sets none. It keeps abandoned work out of the backlog."""

    @property
    def origins(self) -> tuple[str, ...]:
        """The CORS origins, one each."""
        return tuple(origin for each in self.cors_origins.split(",") if (origin := each.strip()))

    @property
    def beyond_this_machine(self) -> bool:
        """Whether other machines can reach the port."""
        return not _is_loopback(self.host)

    def check_combinations(self) -> None:
        """Hold these settings against each other. Raises SettingsError."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("RECOMMENDER_TLS_CERTIFICATE and RECOMMENDER_TLS_KEY go together: set both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("RECOMMENDER_TLS_CLIENT_CA needs RECOMMENDER_TLS_CERTIFICATE: TLS proves both sides")
        if self.tls_certificate is None and not self.plaintext and self.beyond_this_machine:
            raise SettingsError(
                f"RECOMMENDER_HOST={self.host} would take calls from other machines in plaintext: set "
                "RECOMMENDER_TLS_CERTIFICATE and RECOMMENDER_TLS_KEY, or RECOMMENDER_PLAINTEXT=true if something else "
                "encrypts, or RECOMMENDER_HOST=127.0.0.1"
            )
        if self.web and self.edge != "envoy":
            raise SettingsError("RECOMMENDER_WEB=true needs RECOMMENDER_EDGE=envoy: grpc.aio speaks gRPC alone")
        if self.cors_origins and not self.web:
            raise SettingsError("RECOMMENDER_CORS_ORIGINS needs RECOMMENDER_WEB=true: pages cannot call by plain gRPC")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"RECOMMENDER_CORS_ORIGINS has {origin!r}, which is not an origin as browsers send it: a scheme, a "
                    "host in small letters and, unless it is the scheme's own, a port, as https://shop.example:8443"
                )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
