"""A client in Python: one import, typed, a deadline on every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc


@dataclass(frozen=True, slots=True)
class Recommendations:
    """A server's answer: item ids, best first, their scores, and which model gave them."""

    item_ids: tuple[int, ...]
    scores: tuple[float, ...]
    model_version: str


class Client:
    """Asks one server, at `target` (`host:port`), over one channel; an async context manager.

    Calls raise grpc.aio.AioRpcError with the server's status.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(self._channel)

    async def recommend(self, item_ids: Sequence[int], *, limit: int = 0, timeout: float) -> Recommendations:  # noqa: ASYNC109 (a gRPC deadline travels to the server)
        """Recommendations for a history, oldest item first; 0 leaves the number to the server.

        `timeout` is in seconds and covers everything.
        """
        request = api.RecommendRequest(item_ids=item_ids, limit=limit)
        response = await self._stub.Recommend(request, timeout=timeout)
        return Recommendations(tuple(response.item_ids), tuple(response.scores), response.model_version)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
