"""The model behind Ray Serve, as its pages on gRPC and on dynamic batching have it: our proto, one replica."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from bench.peers.ranker import BATCH, PORT, WAIT_MS, Ranker
from recommender.recommend_api.v1 import recommend_api_pb2 as api


@serve.deployment(max_ongoing_requests=1024)
class Recommender:
    """A replica with a session; the ingress finds the method by its name in the proto."""

    def __init__(self) -> None:
        self._ranker = Ranker()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1e3)  # type: ignore[untyped-decorator]
    async def rank(self, requests: list[api.RecommendRequest]) -> list[api.RecommendResponse]:
        """Rank for every request of a batch."""
        items, scores = self._ranker([request.item_ids for request in requests])
        return [
            api.RecommendResponse(item_ids=ids, scores=of)
            for ids, of in zip(items.tolist(), scores.tolist(), strict=True)
        ]

    async def Recommend(self, request: api.RecommendRequest) -> api.RecommendResponse:  # noqa: N802
        """One call."""
        reply: api.RecommendResponse = await self.rank(request)
        return reply


def alias() -> None:
    """Let Ray's processes find the messages by the name that their descriptor has, which they pickle them by."""
    package = Path.cwd() / "recommend_api" / "v1"
    package.mkdir(parents=True, exist_ok=True)
    package.joinpath("recommend_api_pb2.py").write_text(
        "import sys\n"
        "from recommender.recommend_api.v1 import recommend_api_pb2\n"
        "sys.modules[__name__] = recommend_api_pb2\n",
        encoding="utf-8",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join((os.environ["PYTHONPATH"], str(Path.cwd())))
    sys.path.append(str(Path.cwd()))


def main() -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    alias()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        http = bound.getsockname()[1]
    ray.init(address="local", include_dashboard=False, num_cpus=4)
    serve.start(
        http_options=HTTPOptions(port=http),
        grpc_options=gRPCOptions(
            port=PORT,
            grpc_servicer_functions=[
                "recommender.recommend_api.v1.recommend_api_pb2_grpc.add_RecommenderServiceServicer_to_server"
            ],
        ),
    )
    serve.run(Recommender.bind())  # type: ignore[attr-defined]
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
