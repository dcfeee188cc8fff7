"""The port of an orchestrator's probes: `grpc.health.v1` in plaintext, without tokens, and nothing else.

Probes of kubelet and the like speak neither TLS nor tokens. Three questions have three names: has it started, may it
get calls, must it be killed. Who drains is unready, and not dead.
"""

from __future__ import annotations

from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from recommender.edges.address import address_of
from recommender.errors import StartError

STARTUP: Final = "startup"
READINESS: Final = "readiness"
LIVENESS: Final = "liveness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_MOST_CALLS = 16
_MOST_BYTES = 4096


class Probes:
    """Answers `startup`, `readiness` (also under the empty name) and `liveness` from `listen` to `close`."""

    def __init__(self) -> None:
        self._health = health.aio.HealthServicer()
        # Whoever can reach this port needs no token: it gives little and takes little.
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", _MOST_CALLS),
            ("grpc.max_receive_message_length", _MOST_BYTES),
            ("grpc.max_metadata_size", _MOST_BYTES),
            ("grpc.absolute_max_metadata_size", _MOST_BYTES),
        )
        self._server = grpc.aio.server(options=options)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def listen(self, host: str, port: int) -> int:
        """Answer from now on: alive, not started, not ready. The port, new if it was 0. Raises StartError."""
        try:
            bound = self._server.add_insecure_port(address_of(host, port))
        except RuntimeError as error:
            raise StartError(
                f"cannot answer probes on port {port} of {host}: it is in use, or the address is not this machine's; "
                "set RECOMMENDER_HEALTH_PORT to another one (0 takes a free one, empty answers none)"
            ) from error
        await self.turn(alive=True, ready=False)
        await self._health.set(STARTUP, _NOT_SERVING)
        await self._server.start()
        return bound

    async def turn(self, *, alive: bool, ready: bool) -> None:
        """Answer so from now on; who has been ready once has started."""
        await self._health.set(LIVENESS, _SERVING if alive else _NOT_SERVING)
        for name in ("", READINESS):
            await self._health.set(name, _SERVING if ready else _NOT_SERVING)
        if ready:
            await self._health.set(STARTUP, _SERVING)

    async def close(self) -> None:
        """Answer no more."""
        await self._server.stop(0)


async def probe(address: str, name: str, timeout: float) -> str:
    """Ask a server for the health of `name`: SERVING, or what else it says. Raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(address) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        request = health_pb2.HealthCheckRequest(service=name)
        answer = health_pb2.HealthCheckResponse.FromString(await check(request.SerializeToString(), timeout=timeout))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
