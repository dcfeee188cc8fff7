"""Ask a health port, as an orchestrator's gRPC probe does."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2


async def probe(address: str, name: str, timeout: float) -> str:
    """Ask a server for the health of `name`. Returns SERVING or another status. Raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(address) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        request = health_pb2.HealthCheckRequest(service=name)
        answer = health_pb2.HealthCheckResponse.FromString(await check(request.SerializeToString(), timeout=timeout))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
