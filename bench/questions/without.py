"""Cost of each part of a `Recommend` call: the server with and without it.

Servers on one edge stand side by side, one whole and one without each part; h2load (Debian: nghttp2-client) asks
them in turns, in an order of chance each round. A round gives a server's CPU a call as a share of the whole one's in
the same round. `whole again`, the same as the whole, says how much of that is noise. `just bench without`

A server without its deadlines or its open calls is none that anybody should run: it is here to be measured.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, get_args

import numpy as np
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from bench.facts import ROOT
from bench.figures import interval, spread
from bench.questions.many import SERVICE, framed, histories, load
from bench.serving import Server, serving
from recommender.__main__ import main as run_command
from recommender.api.messages import decoded
from recommender.api.options import Options
from recommender.api.queries import Asked, Reader
from recommender.batching.timer import DeadlineTimer
from recommender.cli import worker
from recommender.domain import Query, Ranking
from recommender.edges import calls as noted
from recommender.edges.calls import Calls
from recommender.edges.envoy.application import AsgiEdge
from recommender.edges.envoy.asgi import Receive, Scope, Send
from recommender.edges.envoy.calls import OpenCalls as HttpCalls
from recommender.edges.grpc_aio import edge
from recommender.edges.grpc_aio.calls import OpenCalls
from recommender.edges.grpc_aio.spans import Context
from recommender.edges.method import Method, Unary
from recommender.edges.methods import Methods
from recommender.engine.contract import Feed, Outputs
from recommender.engine.engine import OnnxEngine
from recommender.engine.sessions import Sessions
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server.embedded import Embedded
from recommender.server.envoy import EnvoyServer
from recommender.settings.network import Edge

PART = "BENCH_PART"
"""Variable of the environment that names the part which Envoy's Python leaves out."""
RECOMMEND = f"{SERVICE}/Recommend"
(_HISTORY,) = histories(1)
HISTORY = tuple(_HISTORY)
RANKING = Ranking(list(range(10)), [1.5] * 10)
WHOLE, AGAIN = "whole", "whole again"
_ID = str(uuid.UUID(int=1))
_NO_OPTIONS = Options()


def replace(owner: object, name: str, by: object) -> None:
    """Put something else in the place of an attribute."""
    setattr(owner, name, by)


def nothing(*_: object, **__: object) -> None:
    """Take the place of what is left out."""


def _request_id() -> None:
    replace(noted, "request_id_in", lambda _: _ID)


def _log_context() -> None:
    replace(noted, "bind_contextvars", nothing)


def _metrics() -> None:
    replace(Calls, "count", nothing)


def _deadlines() -> None:
    replace(DeadlineTimer, "watch", nothing)


def _open_calls() -> None:
    async def read(_: OpenCalls, context: Context, __: float, ___: int) -> object:
        return await context.read()

    for name in ("begin", "expect", "received"):
        replace(OpenCalls, name, nothing)
    replace(OpenCalls, "leave", nothing)
    replace(OpenCalls, "read", read)


def _open_http_calls() -> None:
    for name in ("begin", "end"):
        replace(HttpCalls, name, nothing)


def _rules() -> None:
    def read(_: Reader, request: api.RecommendRequest, request_id: str = "", __: object = None) -> Asked:
        return Asked(tuple(request.item_ids[:]), 1, request_id, "", _NO_OPTIONS)

    replace(Reader, "read", read)


def _edge() -> None:
    """Leave out all that the edge does around a call: id, metadata, deadline, metrics, and the open calls."""

    def bare(
        method: Method, calls: OpenCalls, _: object
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes | None]]:
        respond = edge._respond(method, calls)  # noqa: SLF001 (it takes the edge apart)

        async def serve(_: AsyncIterator[bytes], context: Context) -> bytes | None:
            reply: Message | None = await respond(context, float("inf"), _ID)
            return None if reply is None else reply.SerializeToString()

        return serve

    _open_calls()
    replace(edge, "_serving", bare)


def _http_edge() -> None:
    """Leave out the same behind Envoy. Other calls than this one are not answered."""
    start = {"type": "http.response.start", "status": 200, "trailers": True}
    start["headers"] = [(b"content-type", b"application/grpc")]
    end = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}

    async def bare(asgi: AsgiEdge, scope: Scope, receive: Receive, send: Send) -> None:
        method, _ = asgi._methods[scope["path"]]  # noqa: SLF001 (it takes the edge apart)
        event = await receive()
        if isinstance(method, Unary):
            reply = await method.answer(event["body"][5:], float("inf"), _ID)
            await send(start)
            await send({"type": "http.response.body", "body": framed(reply.SerializeToString())})
            await send(end)

    replace(AsgiEdge, "__call__", bare)


def _model() -> None:
    """Leave out the model's run. Histories that are not the asked one have it: else no model would pass its checks."""
    run = Sessions.run

    def answered(sessions: Sessions, feed: Feed, *options: Any, **more: Any) -> Outputs:  # noqa: ANN401 (passed on)
        histories = feed["user_history"]
        if histories.shape[1] == len(HISTORY) and histories[0, 0] == HISTORY[0]:
            rows = len(histories)
            return [np.tile(np.array(RANKING.item_ids), (rows, 1)), np.full((rows, 10), 1.5, np.float32)]
        return run(sessions, feed, *options, **more)

    replace(Sessions, "run", answered)


def _engine() -> None:
    """Leave out packing, the engine's thread and unpacking too: the answer is there at once."""
    run, stage = OnnxEngine.run, OnnxEngine.stage

    async def answered(engine: OnnxEngine, queries: Sequence[Query], **more: Any) -> Sequence[Ranking]:  # noqa: ANN401
        return [RANKING] * len(queries) if queries[0].history == HISTORY else await run(engine, queries, **more)

    def staged(engine: OnnxEngine, queries: Sequence[Query]) -> object:
        return None if queries[0].history == HISTORY else stage(engine, queries)

    replace(OnnxEngine, "run", answered)
    replace(OnnxEngine, "stage", staged)


def _service() -> None:
    """Leave out all below the edge: reading, batcher and engine. A reply of the same size is built."""
    reply = api.RecommendResponse(
        item_ids=RANKING.item_ids, scores=RANKING.scores, model_version="10@1", request_id=_ID, source=api.SOURCE_MODEL
    )

    async def answer(message: bytes) -> api.RecommendResponse:
        decoded(api.RecommendRequest, message)
        return reply

    replace(Methods, "_recommend", lambda _, message, *__: answer(message))


PARTS: Mapping[str, Callable[[], None]] = {
    WHOLE: nothing,
    AGAIN: nothing,
    "request id": _request_id,
    "context of log lines": _log_context,
    "metrics of calls": _metrics,
    "deadlines": _deadlines,
    "open calls": _open_calls,
    "rules of requests": _rules,
    "all of the edge": _edge,
    "model": _model,
    "engine": _engine,
    "all below the edge": _service,
}
BEHIND_ENVOY: Mapping[str, Callable[[], None]] = {
    **PARTS,
    "open calls": _open_http_calls,
    "all of the edge": _http_edge,
}


def __getattr__(name: str) -> Embedded:
    """Make the application that Envoy's Python asks this module for, without a part."""
    if name != "app" or PART not in os.environ:
        raise AttributeError(name)
    BEHIND_ENVOY[os.environ[PART]]()
    return Embedded()


def serve(part: str) -> None:
    """Serve without a part, on either edge."""
    if os.environ["RECOMMENDER_EDGE"] == "envoy":
        os.environ[PART] = part
        replace(worker, "EnvoyServer", partial(EnvoyServer, application="bench.questions.without:app"))
    else:
        PARTS[part]()
    run_command()


def measured(servers: Mapping[str, Server], body: bytes, rounds: int, calls: int) -> dict[str, list[float]]:
    """The CPU of a call in µs, of each server and round."""
    cpu: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name in random.sample(list(servers), len(servers)):
            server = servers[name]
            before = server.cpu_seconds()
            load(server.port, RECOMMEND, body, 1, calls)
            cpu[name].append((server.cpu_seconds() - before) / calls * 1e6)
    return cpu


def main() -> None:
    """Show what each part takes."""
    if sys.argv[1:2] == ["--serve"]:
        part = sys.argv[2]
        sys.argv[1:] = ["serve", *sys.argv[3:]]
        serve(part)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--calls", type=int, default=3000, help="of a round on one server")
    parser.add_argument("--edge", default="grpc", choices=get_args(Edge))
    options = parser.parse_args()
    body = framed(api.RecommendRequest(item_ids=HISTORY).SerializeToString())
    model = {"RECOMMENDER_MODEL": str(ROOT / "weights" / "10_model.onnx"), "RECOMMENDER_THREADS": "1"}
    model["RECOMMENDER_EDGE"] = options.edge
    with ExitStack() as stack:
        start = partial(serving, settings=model)
        servers = {
            name: stack.enter_context(start(module=("-m", "bench.questions.without", "--serve", name)))
            for name in PARTS
        }
        cpu = measured(servers, body, options.rounds + 1, options.calls)
    table = Table("without", "µs CPU a call", "saved, µs: median and its 95 % interval", "share of the whole")
    whole = cpu[WHOLE][1:]
    for name, each in cpu.items():
        saved = [all_of - less for all_of, less in zip(whole, each[1:], strict=True)]
        low, high = interval(saved)
        share = statistics.median(less / all_of for all_of, less in zip(whole, each[1:], strict=True))
        told = (
            ("", "1") if name == WHOLE else (f"{statistics.median(saved):.1f}, {low:.1f} … {high:.1f}", f"{share:.2f}")
        )
        table.add_row("nothing" if name == WHOLE else name, spread(each[1:]), *told)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
