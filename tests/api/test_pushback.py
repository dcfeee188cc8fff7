"""A full backlog, a real channel and the shipped clients: they retry after the given time, not before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from recommender.client import Client, SyncClient
from recommender.edges.calls import Calls
from recommender.edges.grpc_aio.calls import OpenCalls
from recommender.edges.grpc_aio.edge import add_methods
from recommender.edges.methods import Methods
from recommender.errors import BacklogFullError
from recommender.recommend_api.v1 import recommend_api_pb2 as api

TIMEOUT = 30.0
PUSHBACK = 0.05


class Full:
    """A service whose backlog has room after some refusals; notes the time of each call."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked: list[float] = []
        self.names: set[str] = set()

    async def recommend(self, _: object, __: float, request_id: str) -> api.RecommendResponse:
        self.asked.append(time.monotonic())
        self.names.add(request_id)
        if len(self.asked) <= self.refusals:
            raise BacklogFullError(7, retry_after=PUSHBACK)
        return api.RecommendResponse(item_ids=[4])


@asynccontextmanager
async def serving(service: Full) -> AsyncIterator[str]:
    methods = Methods(Calls())
    methods.open(service)  # type: ignore[arg-type]
    server = grpc.aio.server()
    add_methods(server, methods, OpenCalls(2**20))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def assert_came_back_as_told(service: Full, attempts: int) -> None:
    pauses = [later - earlier for earlier, later in zip(service.asked, service.asked[1:], strict=False)]
    assert len(service.asked) == attempts
    assert all(pause >= PUSHBACK for pause in pauses), pauses
    assert len(service.names) == 1, "all attempts are one call"


async def test_a_refused_call_comes_back_when_it_was_told_to_and_is_answered() -> None:
    service = Full(2)
    async with serving(service) as target, Client(target) as client:
        assert (await client.recommend([1], timeout=TIMEOUT)).item_ids == (4,)

    assert_came_back_as_told(service, 3)


async def test_the_synchronous_client_does_the_same() -> None:
    service = Full(2)

    def ask(target: str) -> tuple[int, ...]:
        with SyncClient(target) as client:
            return client.recommend([1], timeout=TIMEOUT).item_ids

    async with serving(service) as target:
        assert await asyncio.to_thread(ask, target) == (4,)

    assert_came_back_as_told(service, 3)


async def test_a_call_gives_up_after_four_attempts() -> None:
    service = Full(100)
    async with serving(service) as target, Client(target) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.recommend([1], timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_came_back_as_told(service, 4)


async def test_a_call_whose_deadline_comes_first_does_not_wait_for_nothing() -> None:
    service = Full(100)
    async with serving(service) as target, Client(target) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.recommend([1], timeout=PUSHBACK * 0.9)

    # Refused, or late where the machine is slow; but never asked again.
    assert refused.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert len(service.asked) <= 1
