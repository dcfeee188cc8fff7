"""The names of probes, and how to send one. Imports next to nothing: `recommender health` runs every few seconds."""

from __future__ import annotations

from typing import Final

import grpc
from grpc_health.v1 import health_pb2

STARTUP: Final = "startup"
READINESS: Final = "readiness"
LIVENESS: Final = "liveness"


async def probe(address: str, name: str, timeout: float) -> str:
    """Ask a server for the health of `name`. Returns SERVING or another status. Raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(address) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        request = health_pb2.HealthCheckRequest(service=name)
        answer = health_pb2.HealthCheckResponse.FromString(await check(request.SerializeToString(), timeout=timeout))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
