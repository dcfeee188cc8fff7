"""Many callers that leave at once."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from tests.support.facts import FACTS

TIMEOUT = 60.0


async def nearly_all_leave(port: int) -> tuple[int, Counter[grpc.StatusCode]]:
    """One connection, two thousand callers that leave within 2.5 ms, and forty that stay. Returns how many of these got
    the right answer, and how the calls of the others ended."""
    loop = asyncio.get_running_loop()
    codes: Counter[grpc.StatusCode] = Counter()
    right = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)

        async def leave(moment: float) -> None:
            call = stub.Recommend(api.RecommendRequest(item_ids=[0]), timeout=TIMEOUT)
            loop.call_later(moment, call.cancel)
            codes[await call.code()] += 1

        for _ in range(40):
            leaving = [asyncio.create_task(leave(number / 20_000)) for number in range(50)]
            answer = await stub.Recommend(api.RecommendRequest(item_ids=[0]), timeout=TIMEOUT)
            right += list(answer.item_ids) == FACTS[0,]
            await asyncio.gather(*leaving)
    return right, codes
