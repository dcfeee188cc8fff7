"""Servicers of `bench.questions.overhead` on grpc.aio: the one that the proto generates, and others in its place.

    python -m bench.grpc_servicers KIND PORT REPLY

`generated` replies the message in the file REPLY; `lean` is the same with one method that is found by name. `least`
reads the ids too, and builds a reply. `naive` is the batcher that everybody writes first.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import uvloop

from bench.facts import ROOT
from recommender.engine.machine import available_cpus
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

IDS, SCORES = list(range(10)), [1.5] * 10
"""Items and scores of the reply that `least` builds."""
SERVICE = "recommend_api.v1.RecommenderService"


def least(request: api.RecommendRequest, reply: api.RecommendResponse) -> api.RecommendResponse:
    """Read the ids of a request, and build a reply of ten items with the labels of another."""
    history = tuple(request.item_ids)
    if min(history) < 0:
        raise ValueError(history)
    return api.RecommendResponse(
        item_ids=IDS,
        scores=SCORES,
        model_version=reply.model_version,
        request_id=reply.request_id,
        source=reply.source,
    )


class Empty(api_grpc.RecommenderServiceServicer):
    """The servicer that the proto generates, with one method that does nothing but reply."""

    def __init__(self, reply: api.RecommendResponse) -> None:
        self._reply = reply

    async def Recommend(  # noqa: N802 (gRPC names methods so)
        self,
        request: api.RecommendRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """The same for all servers."""
        return self._reply


# The other methods are abstract to mypy and inherited at run time, as in any servicer that implements a part.
Empty.__abstractmethods__ = frozenset()


class Least(Empty):
    """Does what no servicer can do without: reads the history, and builds a reply."""

    async def Recommend(  # noqa: N802
        self,
        request: api.RecommendRequest,
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """Ten items and scores that depend on nothing."""
        return least(request, self._reply)


class Naive(Empty):
    """The usual first batcher."""

    def __init__(self, reply: api.RecommendResponse) -> None:
        super().__init__(reply)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cpus()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = ROOT / "weights" / "10_model.onnx"
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._takes = {each.name for each in self._session.get_inputs()}
        self._waiting: list[tuple[tuple[int, ...], asyncio.Future[tuple[list[int], list[float]]]]] = []
        self._come = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def Recommend(  # noqa: N802
        self,
        request: api.RecommendRequest,
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """Rank in the next batch."""
        future: asyncio.Future[tuple[list[int], list[float]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((tuple(request.item_ids), future))
        self._come.set()
        ids, scores = await future
        return api.RecommendResponse(item_ids=ids, scores=scores)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._come.wait()
            self._come.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:64], self._waiting[64:]
                ranked = await loop.run_in_executor(self._thread, self._run, [history for history, _ in batch])
                for (_, future), each in zip(batch, ranked, strict=True):
                    if not future.done():
                        future.set_result(each)

    def _run(self, histories: Sequence[tuple[int, ...]]) -> list[tuple[list[int], list[float]]]:
        rows, longest = len(histories), max(map(len, histories))
        padded = np.zeros((rows, longest), np.int64)
        for row, history in enumerate(histories):
            padded[row, : len(history)] = history
        feed = {
            "user_history": padded,
            "history_length": np.array([len(history) for history in histories]),
            "k": np.array([10]),
            "excluded": np.empty((0, 2), np.int64),
            "candidates": np.empty((rows, 0), np.int64),
            "candidates_length": np.zeros(rows, np.int64),
        }
        feed = {name: value for name, value in feed.items() if name in self._takes}
        ids, scores = self._session.run(["recommendations", "scores"], feed)
        return list(zip(ids.tolist(), scores.tolist(), strict=True))


SERVICERS: dict[str, Callable[[api.RecommendResponse], Empty]] = {
    "generated": Empty,
    "lean": Empty,
    "least": Least,
    "naive": Naive,
}


def serve(kind: str, port: int, reply: api.RecommendResponse) -> None:
    """Serve one of the servicers until a signal."""

    async def main() -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        empty = SERVICERS[kind](reply)
        if kind == "lean":
            handler = grpc.unary_unary_rpc_method_handler(
                empty.Recommend, api.RecommendRequest.FromString, api.RecommendResponse.SerializeToString
            )
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Recommend": handler}),))
        else:
            api_grpc.add_RecommenderServiceServicer_to_server(empty, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), api.RecommendResponse.FromString(Path(sys.argv[3]).read_bytes()))
