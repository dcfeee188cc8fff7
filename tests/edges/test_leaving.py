"""Callers that leave in the middle of a reply: their calls are CANCELLED, and the log has no error."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import grpc
import pytest

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from tests.support.process import running

TIMEOUT = 60.0
CALLERS = 120
STREAM = "recommend_api.v1.RecommenderService/StreamRecommend"


async def requests() -> AsyncIterator[api.StreamRecommendRequest]:
    for place in range(200):
        request = api.RecommendRequest(item_ids=[1, 2, 3], limit=500)
        yield api.StreamRecommendRequest(correlation_id=place, request=request)


async def leave(stub: api_grpc.RecommenderServiceAsyncStub, number: int) -> None:
    """Open a stream and leave it at some place of the replies."""
    call = stub.StreamRecommend(requests(), timeout=TIMEOUT)
    for _ in range(number % 5):
        await call.read()
    asyncio.get_running_loop().call_later(number % 3 / 300, call.cancel)
    await call.code()


@pytest.mark.both_edges
async def test_a_caller_who_leaves_a_stream_has_cancelled_it_and_that_is_no_error(edge: Edge) -> None:
    settings = {"RECOMMENDER_EDGE": edge, "RECOMMENDER_LOG_LEVEL": "debug"}
    async with running(settings=settings) as server:
        log = asyncio.create_task(server.read_on())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)
            for _ in range(2):
                await asyncio.gather(*(leave(stub, number) for number in range(CALLERS // 2)))
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            await log
    statuses = {event["status"] for event in server.log if event["event"] == "call" and event["method"] == STREAM}

    assert "CANCELLED" in statuses
    assert statuses <= {"CANCELLED", "OK"}
    assert [event for event in server.log if event["level"] == "error"] == []
    assert "Traceback" not in server.text
