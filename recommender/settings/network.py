"""Settings of the port: where calls come in, over which transport, from whom, and what one caller may hold."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from recommender.errors import SettingsError
from recommender.settings.group import Group

Edge: TypeAlias = Literal["grpc", "envoy"]
"""What takes the calls: grpc.aio, or Envoy with Python inside."""

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


class NetworkSettings(Group):
    """What the edges, the health probes and TLS read."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on. The default takes calls from this machine only; a container needs 0.0.0.0, and then TLS or
    RECOMMENDER_PLAINTEXT=true. 0.0.0.0 and :: are the same: every address, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """TCP port to listen on. 0 takes a free one; the log says which."""
    edge: Edge = "grpc"
    """What takes the calls: grpc (grpc.aio) or envoy (Envoy's HTTP/2 in a process of its own with Python inside, half
    the CPU a call where the model is fast; needs recommender[envoy])."""
    web: bool = False
    """Whether calls may come as gRPC-Web and as JSON too, on the same port: for browsers, curl and other callers
    without gRPC, see docs/browsers.md. Only with RECOMMENDER_EDGE=envoy."""
    cors_origins: str = ""
    """Origins whose pages may call from a browser, as `https://shop.example`, exactly as a browser says them, with
    commas between. Empty: none, other than the server's own. Needs RECOMMENDER_WEB=true."""
    tls_certificate: Path | None = None
    """PEM file of the server's certificate and those between it and its authority. With it the port speaks TLS 1.2 and
    1.3 only. Replaced files are taken up without a restart."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, without password."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities whose certificates callers must have (mutual TLS). Empty: callers need none."""
    plaintext: bool = False
    """Whether an address beyond this machine may be listened on without TLS. For networks where something else
    encrypts, such as a service mesh or a proxy beside it: tokens travel readable."""
    tokens_file: Path | None = None
    """TOML file of the tokens that are good, a table for each name; `recommender token` writes one. With it every call
    needs a token, health aside. Changes are taken up without a restart."""
    health_needs_token: bool = False
    """Whether health needs a token too, where others do. Few load balancers can bring one."""
    reflection: bool = True
    """Whether the service describes itself to grpcurl and the like (with a token, where others need one). Turn it off
    where strangers should not see the API."""
    open_inference: bool = True
    """Whether the port speaks the Open Inference Protocol too, for clients and platforms of KServe and Triton:
    docs/open-inference-protocol.md. Turn it off where nobody calls by it."""
    secrets_reload_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 10_000
    """Milliseconds between looks at the files of certificates and tokens. A revoked token is good for so long; a look
    costs some microseconds."""
    max_stream_requests: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Requests of one stream that are open at once: read, their replies not yet taken. Beyond it the stream is not
    read, so that a slow reader costs no memory. Twice the batch size keeps batches full."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4_194_304
    """Bytes of one message at most; gRPC refuses a larger one with RESOURCE_EXHAUSTED before reading it. The default is
    gRPC's own and holds a million ids."""
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=1_048_576)] = 16_384
    """Bytes of a call's metadata (headers) at most; more is refused with RESOURCE_EXHAUSTED. Room for a long token and
    tracing; every call pays for what it sends."""
    max_streams: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """StreamRecommend calls that are open at once at most; one more is refused with RESOURCE_EXHAUSTED. An open stream
    that asks nothing still takes some 50 kB."""
    max_connection_calls: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Calls that are open at once on one connection at most; the client holds back more. One connection can fill the
    backlog and no more: raise it with RECOMMENDER_MAX_BACKLOG behind a proxy."""
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Connections that are open at once at most; one more is closed at once. It bounds what callers hold in a process:
    docs/security.md has the sum. `ulimit -n` must allow as many."""
    max_connection_age_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 1_800_000
    """Milliseconds after which a connection is asked to go and come again, give or take a tenth. 0: never. It spreads
    long-lived clients over servers that came later: lower it where servers come and go."""
    max_connection_age_grace_ms: Annotated[int, Field(ge=1, le=86_400_000)] = 600_000
    """Milliseconds that a connection asked to go has for the calls on it; then they end with UNAVAILABLE. Only streams
    last that long: clients open them anew."""
    max_connection_idle_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 900_000
    """Milliseconds after which a connection without a call is closed. 0: never. It frees what clients forgot; they
    connect anew unasked."""
    keepalive_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 60_000
    """Milliseconds of silence after which the server asks whether a client is still there, and drops the connection
    without an answer in 20 seconds. 0: after two hours. It frees the calls of machines that vanished."""
    min_ping_interval_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 10_000
    """Milliseconds that must lie between a client's pings; one that pings more often is cut off (ENHANCE_YOUR_CALM).
    Pings cost CPU, and load balancers need one in about 30 seconds."""
    handshake_timeout_ms: Annotated[int, Field(ge=100, le=600_000)] = 10_000
    """Milliseconds that a new connection has for TLS and HTTP/2 to be agreed on; one that says nothing is dropped then.
    With RECOMMENDER_EDGE=envoy the headers of a call have as long."""
    default_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 5_000
    """Milliseconds that a caller waits who sets no deadline. It keeps work that nobody waits for out of the backlog."""

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
                    f"RECOMMENDER_CORS_ORIGINS has {origin!r}, which is no origin as a browser says it: a scheme, a "
                    "host in small letters and, unless it is the scheme's own, a port, as https://shop.example:8443"
                )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
