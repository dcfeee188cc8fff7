"""The simplest server: a grpc.aio servicer that runs the model for each call, in a thread, unbatched."""

from __future__ import annotations

import asyncio

import grpc

from bench.peers.ranker import PORT, Ranker
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc


class Recommender(api_grpc.RecommenderServiceServicer):
    """One session, shared by the threads of the loop."""

    def __init__(self) -> None:
        self._ranker = Ranker()

    async def Recommend(  # noqa: N802 (gRPC names methods so)
        self,
        request: api.RecommendRequest,
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """Rank for this history alone."""
        items, scores = await asyncio.to_thread(self._ranker, [request.item_ids])
        return api.RecommendResponse(item_ids=items[0].tolist(), scores=scores[0].tolist())


async def main() -> None:
    server = grpc.aio.server()
    api_grpc.add_RecommenderServiceServicer_to_server(Recommender(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{PORT}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
