"""Servicers of `bench.questions.overhead` behind Envoy, as ASGI applications in the place of the server's own.

`empty` replies the bytes of the file that `BENCH_REPLY` names. `least` reads the ids too, and builds a reply of ten
items. The server itself is started as usual, so that Envoy has the same settings and neighbours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

from bench import grpc_servicers
from recommender.cli.running import run
from recommender.edges.envoy.asgi import Receive, Scope, Send
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server.embedded import Embedded
from recommender.server.envoy import EnvoyServer
from recommender.server.process import ExitCode, stopping_on_signals
from recommender.settings.settings import Settings

REPLY = "BENCH_REPLY"
"""Variable of the environment that names a file with a reply."""
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
_END = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


class Servicer(Embedded):
    """Answers every request by `reply`, which gets the message of the call; the lifespan is the server's."""

    def __init__(self, reply: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._reply = reply

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Answer a request, or run the lifespan."""
        kind = cast("Mapping[str, object]", scope)["type"]
        return self._answer(receive, send) if kind == "http" else super().__call__(scope, receive, send)

    async def _answer(self, receive: Receive, send: Send) -> None:
        event = await receive()
        reply = self._reply(event["body"][5:])
        await send(_START)
        await send({"type": "http.response.body", "body": b"\0%b%b" % (len(reply).to_bytes(4, "big"), reply)})
        await send(_END)


def __getattr__(name: str) -> Servicer:
    """Make the application that Envoy's Python asks this module for."""
    reply = Path(os.environ.get(REPLY, os.devnull)).read_bytes()
    if name == "empty":
        return Servicer(lambda _: reply)
    if name == "least":
        labels = api.RecommendResponse.FromString(reply)
        ask = api.RecommendRequest.FromString
        return Servicer(lambda message: grpc_servicers.least(ask(message), labels).SerializeToString())
    raise AttributeError(name)


async def serve(kind: str, port: int) -> ExitCode:
    """Serve one of them until a signal."""
    server = EnvoyServer(Settings(port=port, edge="envoy"), f"bench.envoy_servicers:{kind}")
    async with stopping_on_signals(server):
        await server.start()
        code = await server.run()
        await server.close()
        return code


if __name__ == "__main__":
    kind, port, reply = sys.argv[1:]
    os.environ[REPLY] = reply
    sys.exit(run(serve(kind, int(port))))
