"""Connections: how channels are configured, and when a call is tried again."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from typing import Final

import grpc

from recommender.api.metadata import MOST_REPLY_BYTES
from recommender.edges.address import is_this_machine

_REQUEST_ID_KEY = "x-request-id"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_MOST_ATTEMPTS = 4
SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "recommend_api.v1.RecommenderService"}],
                "retryPolicy": {
                    "maxAttempts": _MOST_ATTEMPTS,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
    }
)
"""Service config that any gRPC client of this service should use."""

_OPTIONS: Final = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    # Load balancers drop connections that are silent for a minute or so.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC's own limit of 4 MiB is less than a server may send.
    ("grpc.max_receive_message_length", 2 * MOST_REPLY_BYTES),
    # Else clients of one process share one connection, and with it one worker of several.
    ("grpc.use_local_subchannel_pool", 1),
)

# Seconds: gRPC takes a deadline centuries away for one that has passed.
_LONGEST_TIMEOUT = 1e8


def options_for(target: str) -> tuple[tuple[str, str | int], ...]:
    """Options of a channel to a target."""
    return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_this_machine(target) else _OPTIONS


def time_left(deadline: float) -> float | None:
    """Seconds until a deadline on the monotonic clock; None if it is centuries away."""
    return None if (left := deadline - time.monotonic()) > _LONGEST_TIMEOUT else max(left, 0.0)


def authorization(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


def naming(request_id: str) -> tuple[tuple[str, str], ...]:
    """The request id that all attempts of a call share in the server's log; generated if absent."""
    return ((_REQUEST_ID_KEY, request_id or secrets.token_hex(8)),)


def pause_after(
    code: grpc.StatusCode, metadata: Iterable[tuple[str, str | bytes]] | None, attempt: int, deadline: float
) -> float | None:
    """Seconds until another attempt is welcome; None if it is not, or would come too late."""
    if code is not grpc.StatusCode.RESOURCE_EXHAUSTED or attempt >= _MOST_ATTEMPTS:
        return None
    told = dict(metadata or ()).get(_PUSHBACK_KEY)
    if not isinstance(told, str) or not told.isdecimal():
        return None
    pause = int(told) / 1e3
    return pause if time.monotonic() + pause < deadline else None
