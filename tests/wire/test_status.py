"""The table of errors and statuses, a row each."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from recommender.edge import PUSHBACK_KEY, Edge
from recommender.errors import (
    BacklogFullError,
    DeadlineError,
    EngineError,
    EngineHungError,
    InvalidRequestError,
    UnavailableError,
    Violation,
)
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.status import INTERNAL_MESSAGE


class FailingService:
    """Stands in for the service: whatever is asked, it raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def recommend(self, *_: object) -> api.RecommendResponse:
        raise self.error


async def answer_to(open_edge: Callable[[Edge], None]) -> grpc.aio.AioRpcError:
    """The status that a caller of an edge gets, over a real channel."""
    edge = Edge()
    open_edge(edge)
    server = grpc.aio.server()
    edge.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Recommend(api.RecommendRequest(item_ids=[1]), timeout=30)
            return refused.value
    finally:
        await server.stop(0)


TABLE = [
    (InvalidRequestError(Violation("limit", "is odd")), grpc.StatusCode.INVALID_ARGUMENT, "limit: is odd"),
    (
        BacklogFullError(7, retry_after=0.0123),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the backlog is full: 7 requests are waiting; retry in 12 ms",
    ),
    (DeadlineError("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "too late"),
    (UnavailableError("not now"), grpc.StatusCode.UNAVAILABLE, "not now"),
    (EngineError("secret of the engine"), grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
    (EngineHungError("secret of the engine"), grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
    (ZeroDivisionError("secret of a bug"), grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
]


@pytest.mark.parametrize(("error", "code", "message"), TABLE, ids=[type(row[0]).__name__ for row in TABLE])
async def test_each_error_has_its_status(error: Exception, code: grpc.StatusCode, message: str) -> None:
    refused = await answer_to(lambda edge: edge.open(FailingService(error)))  # type: ignore[arg-type]

    assert (refused.code(), refused.details()) == (code, message)


async def test_a_full_backlog_tells_when_to_come_back() -> None:
    refused = await answer_to(
        lambda edge: edge.open(FailingService(BacklogFullError(7, retry_after=0.0123)))  # type: ignore[arg-type]
    )

    assert dict(refused.trailing_metadata() or ())[PUSHBACK_KEY] == "13"


async def test_before_the_model_is_loaded_callers_are_sent_elsewhere() -> None:
    refused = await answer_to(lambda _: None)

    assert refused.code() == grpc.StatusCode.UNAVAILABLE
    assert "being loaded" in (refused.details() or "")
