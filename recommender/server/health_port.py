"""The health port for an orchestrator's probes: `grpc.health.v1` in plaintext without tokens, and nothing else.

Kubelets speak neither TLS nor tokens. Three names answer three questions: has it started, may it get
calls, must it be killed. A draining server is alive but not ready.
"""

from __future__ import annotations

from typing import Final

import grpc

from recommender.edges.address import address_of
from recommender.edges.grpc_aio.calls import OpenCalls
from recommender.edges.grpc_aio.edge import add_methods
from recommender.edges.grpc_aio.listener import port_options
from recommender.edges.health import Health
from recommender.errors import StartError
from recommender.settings.network import NetworkSettings

STARTUP: Final = "startup"
READINESS: Final = "readiness"
LIVENESS: Final = "liveness"

_MOST_CALLS = 16
_MOST_BYTES = 4096


class HealthPort:
    """Answers `startup`, `readiness` (also under the empty name) and `liveness` from `listen` to `close`.

    `network` has the limits of time, which are those of the service's port.
    """

    def __init__(self, network: NetworkSettings) -> None:
        self._health = Health(("", STARTUP, READINESS, LIVENESS))
        # This port needs no token: it reveals little and costs little.
        options = port_options(network, calls=_MOST_CALLS, message_bytes=_MOST_BYTES, metadata_bytes=_MOST_BYTES)
        self._server = grpc.aio.server(options=options)
        self._calls = OpenCalls(_MOST_BYTES)
        add_methods(self._server, self._health.methods(), self._calls)

    async def listen(self, host: str, port: int) -> int:
        """Answer: alive, not started, not ready. Returns the bound port; 0 asks for a free one. Raises StartError."""
        try:
            bound = self._server.add_insecure_port(address_of(host, port))
        except RuntimeError as error:
            raise StartError(
                f"cannot answer probes on port {port} of {host}: it is in use, or the address is not this machine's; "
                "set RECOMMENDER_HEALTH_PORT to another one (0 takes a free one, empty answers none)"
            ) from error
        self._calls.port = bound
        self.turn(alive=True, ready=False)
        await self._server.start()
        return bound

    def turn(self, *, alive: bool, ready: bool) -> None:
        """Change what is answered; a server that has been ready once has started."""
        self._health.turn(LIVENESS, serving=alive)
        self._health.turn("", READINESS, serving=ready)
        if ready:
            self._health.turn(STARTUP, serving=True)

    async def close(self) -> None:
        """Stop answering."""
        await self._server.stop(0)
