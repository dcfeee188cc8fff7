"""Storms: thousands of calls over a real channel, half of which leave or are late at random moments."""

from __future__ import annotations

import asyncio
import random
import sys

import grpc
import pytest

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from tests.support.facts import FACTS
from tests.support.process import running
from tests.support.remote import RemoteServer
from tests.support.serving import AnyServer, Serve
from tests.support.storms import nearly_all_leave

pytestmark = pytest.mark.both_edges

PATIENT = 60.0
AT_ONCE = 200
HISTORIES = [*FACTS]


async def storm(port: int, calls: int, seed: int) -> int:
    """Make that many calls, every other one cancelled or expiring; how many of the others were answered right."""
    drawn = random.Random(seed)
    room = asyncio.Semaphore(AT_ONCE)
    loop = asyncio.get_running_loop()

    async def one(number: int, stub: api_grpc.RecommenderServiceAsyncStub) -> bool:
        history = HISTORIES[number % len(HISTORIES)]
        request = api.RecommendRequest(item_ids=history)
        async with room:
            if number % 2 == 0:
                answer = await stub.Recommend(request, timeout=PATIENT)
                return list(answer.item_ids) == FACTS[history]
            moment = drawn.uniform(0, 0.4)
            call = stub.Recommend(request, timeout=moment if number % 4 == 1 else PATIENT)
            if number % 4 == 3:
                loop.call_later(moment, call.cancel)
            try:
                await call
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017 (others are fine)
            except asyncio.CancelledError:
                assert call.cancelled()
            return False

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)
        return sum(await asyncio.gather(*(one(number, stub) for number in range(calls))))


async def settled(server: AnyServer) -> None:
    await asyncio.wait_for(server.batcher.drain(), PATIENT)


def tasks_of(server: AnyServer) -> int:
    """The tasks of the loop that it runs on."""
    return server.tasks() if isinstance(server, RemoteServer) else len(asyncio.all_tasks())


async def test_who_stays_in_a_storm_is_answered_right_and_nothing_is_left_behind(serve: Serve) -> None:
    calls = 2000
    async with serve(max_backlog=10_000) as server:
        before = tasks_of(server)
        right = await storm(server.port, calls, seed=1)
        await settled(server)
        for _ in range(100):  # handlers of calls that left end in turns of the loop that follow
            await asyncio.sleep(0)
        after = tasks_of(server)
        seen = server.batcher.statistics()

    ended = seen.answered + seen.cancelled + seen.expired + seen.refused_deadline + seen.refused_full
    assert right == calls // 2
    assert (seen.waiting, seen.running, seen.failed, seen.refused_full) == (0, 0, 0, 0)
    assert seen.cancelled + seen.expired + seen.refused_deadline > 0
    assert ended <= calls  # a call that left before it was accepted never reached the batcher
    assert after <= before


async def test_a_connection_whose_callers_nearly_all_leave_serves_those_who_stay(serve: Serve) -> None:
    # A proxy has callers of many users on one connection: it must not end for what some of them do.
    async with serve(max_backlog=10_000) as server:
        right, codes = await nearly_all_leave(server.port)

    assert right == 40
    assert set(codes) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
    assert codes[grpc.StatusCode.CANCELLED] > 1500


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc for the server's memory")
async def test_storm_after_storm_the_server_holds_no_more_memory(
    capsys: pytest.CaptureFixture[str], edge: Edge
) -> None:
    calls, storms = 10_000, 8
    resident = []
    async with running(settings={"RECOMMENDER_MAX_BACKLOG": "20000", "RECOMMENDER_EDGE": edge}) as server:
        for seed in range(storms):
            assert await storm(server.port, calls, seed) == calls // 2
            resident.append(server.resident_bytes() // 1_000_000)
    with capsys.disabled():
        print(f"\n{edge}: resident MB of the server after each of {storms} storms of {calls:,} calls: {resident}")  # noqa: T201

    assert max(resident[storms // 2 :]) - resident[storms // 2 - 1] <= 10
