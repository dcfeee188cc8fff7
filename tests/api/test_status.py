"""The table of errors and statuses, a row each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from recommender.api.metadata import PUSHBACK_KEY
from recommender.api.status import INTERNAL_MESSAGE
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.server.envoy import EnvoyServer
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.failing import ERRORS, FailingServer

pytestmark = pytest.mark.both_edges

HOST, LOADING_HOST = "127.0.0.1", "127.0.0.2"

TABLE = {
    "InvalidRequestError": (grpc.StatusCode.INVALID_ARGUMENT, "limit: is odd"),
    "UnknownModelError": (grpc.StatusCode.NOT_FOUND, "no such model"),
    "BacklogFullError": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the backlog is full: 7 requests are waiting; retry in 12 ms",
    ),
    "QuotaError": (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "this token may send 7 requests a second; retry in 12 ms",
    ),
    "UnauthenticatedError": (grpc.StatusCode.UNAUTHENTICATED, "no token"),
    "PermissionDeniedError": (grpc.StatusCode.PERMISSION_DENIED, "another scope"),
    "CatalogueFullError": (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more fit"),
    "DeadlineError": (grpc.StatusCode.DEADLINE_EXCEEDED, "too late"),
    "UnavailableError": (grpc.StatusCode.UNAVAILABLE, "not now"),
    "EngineError": (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
    "EngineHungError": (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
    "ZeroDivisionError": (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
}


@asynccontextmanager
async def failing(edge: Edge, host: str = HOST) -> AsyncIterator[api_grpc.RecommenderServiceAsyncStub]:
    """A client of a server behind which every request fails."""
    settings = Settings(host=host, port=0, edge=edge)
    server = EnvoyServer(settings, "tests.support.failing:app") if edge == "envoy" else FailingServer(settings)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"{host}:{server.port}") as channel:
            yield api_grpc.RecommenderServiceStub(channel)
    finally:
        await server.close()


async def refusal(stub: api_grpc.RecommenderServiceAsyncStub, item: int) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Recommend(api.RecommendRequest(item_ids=[item]), timeout=30)
    return refused.value


async def test_each_error_has_its_status(edge: Edge) -> None:
    async with failing(edge) as stub:
        found = {type(error).__name__: await refusal(stub, item) for item, error in enumerate(ERRORS)}

    assert {name: (refused.code(), refused.details()) for name, refused in found.items()} == TABLE


async def test_a_full_backlog_tells_when_to_come_back(edge: Edge) -> None:
    async with failing(edge) as stub:
        refused = await refusal(stub, [*TABLE].index("BacklogFullError"))

    assert dict(refused.trailing_metadata() or ())[PUSHBACK_KEY] == "13"


async def test_before_the_model_is_loaded_callers_are_sent_elsewhere(edge: Edge) -> None:
    async with failing(edge, LOADING_HOST) as stub:
        refused = await refusal(stub, 0)

    assert refused.code() == grpc.StatusCode.UNAVAILABLE
    assert "being loaded" in (refused.details() or "")
