"""Envoy's configuration: one listener that speaks HTTP/2 and hands every request to Python in the same process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from recommender.edges.address import listening_host
from recommender.settings.network import NetworkSettings

Config: TypeAlias = dict[str, object]

LISTENER = "grpc"
STAT_PREFIX = "grpc"

_TYPES = "type.googleapis.com/envoy.extensions.filters"
_PING_TIMEOUT = "20s"
_STREAM_WINDOW_BYTES = 1 << 18
_CONNECTION_WINDOW_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 17
"""What Envoy buffers of one stream in each direction before flow control holds up the sender."""

_HEADER_ROOM = 4
"""Envoy resets a stream whose metadata is this many times the limit of a call."""
_LEAST_HEADER_BYTES = 1 << 16
_MOST_HEADER_KIB = 8192
"""The largest value that Envoy accepts."""

_RUNTIME: Config = {
    # Envoy closes a connection if more than half of its first streams were reset within a second. Our calls are all
    # shorter than that, callers may cancel at will, and a proxy has many callers on one connection.
    "overload.premature_reset_total_stream_count": 2**53,
}


def envoy_config(
    network: NetworkSettings,
    *,
    application: str,
    module: Path,
    admin: Path,
    tls: Config | None = None,
    filters: Sequence[Config] = (),
    pages: Config | None = None,
) -> Config:
    """Build Envoy's configuration.

    `application` is the ASGI application as module:attribute, `module` pyvoy's library, and `admin` the Unix socket of
    Envoy's administration, for this user alone. With `tls` (see `tls.py`) the port speaks TLS only. `filters` go before
    the application; `pages` has the origins that may call (see `web.py`).
    """
    python = {"app": application, "interface": "asgi", "worker_threads": 1, "lifespan": True, "loop": "uvloop"}
    http2: Config = {
        # The other codec, nghttp2, closes a connection with more than 33 resets a second after its first 1,000.
        "use_oghttp2_codec": True,
        "max_concurrent_streams": network.max_connection_calls,
        "initial_stream_window_size": _STREAM_WINDOW_BYTES,
        "initial_connection_window_size": _CONNECTION_WINDOW_BYTES,
        # A call that breaks the rules of HTTP/2 ends alone; by default its whole connection ends.
        "override_stream_error_on_invalid_http_message": True,
    }
    if network.keepalive_ms:
        http2["connection_keepalive"] = {"interval": _duration(network.keepalive_ms), "timeout": _PING_TIMEOUT}
    # Metadata is counted in bytes by the application, which answers with a status; Envoy would reset the stream.
    most_bytes = max(_LEAST_HEADER_BYTES, _HEADER_ROOM * network.max_metadata_bytes)
    lasting: Config = {"idle_timeout": _duration(network.max_connection_idle_ms), "max_headers_count": most_bytes}
    if network.max_connection_age_ms:
        lasting["max_connection_duration"] = _duration(network.max_connection_age_ms)
    connections = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], **(pages or {})}]},
        "http_filters": [
            *filters,
            {
                "name": "pyvoy",
                "typed_config": {
                    "@type": f"{_TYPES}.http.dynamic_modules.v3.DynamicModuleFilter",
                    "dynamic_module_config": {"module": {"local": {"filename": str(module)}}},
                    "filter_name": "pyvoy",
                    "terminal_filter": True,
                    "filter_config": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": json.dumps(python),
                    },
                },
            },
        ],
        # Request ids are the caller's or the application's.
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "http2_protocol_options": http2,
        # Proxies in front of the web edge speak HTTP/1.0 by default (nginx does), some without a host.
        "http_protocol_options": {"accept_http_10": bool(filters), "default_host_for_http_10": "recommender"},
        # Streams may be idle for any time, as on every gRPC server.
        "stream_idle_timeout": "0s",
        # The end of a reply that is not read, and no more than Envoy buffers; longer ones are the application's care.
        "stream_flush_timeout": _duration(network.default_timeout_ms),
        # Else callers could name themselves by a header, and limits hold for each connection.
        "use_remote_address": True,
        "skip_xff_append": True,
        "common_http_protocol_options": lasting,
        "request_headers_timeout": _duration(network.handshake_timeout_ms),
        "max_request_headers_kb": min(most_bytes >> 10, _MOST_HEADER_KIB),
        # The time between the two GOAWAY frames: calls that crossed the first are still answered.
        "drain_timeout": "0.5s",
    }
    chain: Config = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]
    }
    listener_filters: list[Config] = []
    if tls is None:
        # It waits for the first bytes of HTTP: without it a silent connection lasts until the idle time-out.
        inspector = {"@type": f"{_TYPES}.listener.http_inspector.v3.HttpInspector"}
        listener_filters = [{"name": "envoy.filters.listener.http_inspector", "typed_config": inspector}]
    else:
        chain["transport_socket_connect_timeout"] = _duration(network.handshake_timeout_ms)
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": tls,
                "require_client_certificate": network.tls_client_ca is not None,
            },
        }
    host = listening_host(network.host)
    address: Config = {"address": host, "port_value": network.port}
    if host == "::":
        address["ipv4_compat"] = True
    return {
        "node": {"id": "recommender", "cluster": "recommender"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "overload_manager": {"resource_monitors": [_most_connections(network.max_connections)]},
        "layered_runtime": {"layers": [{"name": "ours", "static_layer": _RUNTIME}]},
        "static_resources": {
            "listeners": [
                {
                    "name": LISTENER,
                    "address": {"socket_address": address},
                    # Otherwise a second server would silently share the port.
                    "enable_reuse_port": False,
                    "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
                    "listener_filters": listener_filters,
                    "listener_filters_timeout": _duration(network.handshake_timeout_ms),
                    "filter_chains": [chain],
                }
            ]
        },
    }


def _most_connections(most: int) -> Config:
    kind = (
        "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    )
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {"@type": kind, "max_active_downstream_connections": most},
    }


def _duration(milliseconds: int) -> str:
    return f"{milliseconds / 1e3:g}s"
