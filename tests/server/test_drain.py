"""A stop under load: no call ends in a way that clients do not retry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import h2.events
import pytest

from recommender.api.metadata import SERVICE_NAME
from recommender.client import Client
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.raw import RECOMMEND, raw
from tests.support.serving import AnyServer, Serve

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
CALLERS = 30
GRACE_MS = 300
ROOM = 1.0
"""Seconds for a busy machine."""
WATCH = "/grpc.health.v1.Health/Watch"
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
GOOD = api.RecommendRequest(item_ids=[0]).SerializeToString()


async def codes_while_it_stops(server: AnyServer, ask: Callable[[], Awaitable[object]]) -> Counter[grpc.StatusCode]:
    """Stop a server while callers ask one call after the other, and return how the calls ended."""
    codes: Counter[grpc.StatusCode] = Counter()
    answered = asyncio.Event()
    stopped = False

    async def caller() -> None:
        while not stopped:
            try:
                await ask()
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
            else:
                codes[OK] += 1
                answered.set()

    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(caller())
        await answered.wait()
        server.stop()
        await server.run()
        stopped = True
    return codes


async def test_calls_that_a_stop_does_not_take_up_end_with_unavailable(serve: Serve) -> None:
    options = (("grpc.enable_retries", 0),)
    async with (
        serve(drain_grace_ms=GRACE_MS) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel,
    ):
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Recommend")
        codes = await codes_while_it_stops(server, lambda: method(GOOD, timeout=TIMEOUT))

    assert set(codes) == {OK, UNAVAILABLE}, "or no call came while it stopped, and nothing was shown"


async def test_no_call_of_the_shipped_client_is_lost_if_another_server_is_there(serve: Serve) -> None:
    async with (
        serve(drain_grace_ms=GRACE_MS) as server,
        serve(edge="grpc") as other,
        Client(f"ipv4:127.0.0.1:{server.port},127.0.0.1:{other.port}") as client,
    ):
        codes = await codes_while_it_stops(server, lambda: client.recommend([0], timeout=TIMEOUT))

    assert set(codes) == {OK}


async def test_calls_that_are_held_open_hold_up_no_stop_beyond_its_grace_and_a_second(serve: Serve) -> None:
    loop = asyncio.get_running_loop()
    async with serve(drain_grace_ms=GRACE_MS) as server, raw(server.port) as holder:
        for path in (RECOMMEND, WATCH):
            await holder.call(path)
        await holder.until(h2.events.SettingsAcknowledged)
        begun = loop.time()
        server.stop()
        await server.run()
        await server.close()

    assert loop.time() - begun < GRACE_MS / 1e3 + 1.0 + ROOM
