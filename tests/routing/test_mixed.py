"""Ten minutes of mixed load on each edge: single calls, batch calls, streams, and callers that leave or are late."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter

import grpc
import pytest

from recommender.client import Client
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge
from tests.support.facts import FACTS
from tests.support.process import running

pytestmark = pytest.mark.both_edges

SECONDS = 600.0
CALLERS = 24
PATIENT = 60.0
HISTORIES = [*FACTS]


async def caller(stub: api_grpc.RecommenderServiceAsyncStub, end: float, seed: int, seen: Counter[str]) -> None:
    """One caller's calls, one after the other, each of a kind that is drawn."""
    drawn = random.Random(seed)
    while time.monotonic() < end:
        kind = drawn.choice(("one", "one", "many", "stream", "leaves", "late"))
        chosen = [drawn.choice(HISTORIES) for _ in range(1 if kind in {"one", "leaves", "late"} else 30)]
        requests = [api.RecommendRequest(item_ids=history) for history in chosen]
        expected = [FACTS[history] for history in chosen]
        found: list[list[int]] = []
        if kind == "one":
            found = [list((await stub.Recommend(requests[0], timeout=PATIENT)).item_ids)]
        elif kind == "many":
            reply = await stub.BatchRecommend(api.BatchRecommendRequest(requests=requests), timeout=PATIENT)
            found = [list(result.response.item_ids) for result in reply.results]
        elif kind == "stream":
            messages = [api.StreamRecommendRequest(correlation_id=i, request=each) for i, each in enumerate(requests)]
            answers = {
                reply.correlation_id: list(reply.response.item_ids)
                async for reply in stub.StreamRecommend(iter(messages), timeout=PATIENT)
            }
            found = [answers[place] for place in range(len(messages))]
        else:
            moment = drawn.uniform(0, 0.02)
            call = stub.Recommend(requests[0], timeout=moment if kind == "late" else PATIENT)
            if kind == "leaves":
                asyncio.get_running_loop().call_later(moment, call.cancel)
            code = await call.code()
            if code is grpc.StatusCode.OK:
                found = [list((await call).item_ids)]
            else:
                expected = []
                kind += f" {code.name}"
        seen[kind] += 1
        seen["wrong"] += found != expected


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc for the server's memory")
async def test_ten_minutes_of_everything_leave_no_wrong_answer_no_stuck_call_and_no_memory(
    capsys: pytest.CaptureFixture[str], edge: Edge
) -> None:
    seen: Counter[str] = Counter()
    resident: list[int] = []
    async with (
        running(settings={"RECOMMENDER_EDGE": edge}) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)
        reading = asyncio.create_task(server.read_on())
        end = time.monotonic() + SECONDS
        callers = [asyncio.create_task(caller(stub, end, seed, seen)) for seed in range(CALLERS)]
        while time.monotonic() < end:
            await asyncio.wait(callers, timeout=SECONDS / 20)
            resident.append(server.resident_bytes() // 1_000_000)
        await asyncio.wait_for(asyncio.gather(*callers), PATIENT)
        alone = await client.recommend([0], timeout=PATIENT)
        reading.cancel()
        await asyncio.wait({reading})
    with capsys.disabled():
        print(f"\n{edge}: {dict(seen)}; resident MB of the server: {resident}")  # noqa: T201

    assert seen["wrong"] == 0
    assert {name.split()[-1] for name in seen if " " in name} <= {"CANCELLED", "DEADLINE_EXCEEDED"}
    assert list(alone.item_ids) == FACTS[0,]
    assert max(resident[len(resident) // 2 :]) - resident[len(resident) // 4] <= 20
