"""Batch calls of megabytes: what they hold at a time, of memory and of the event loop."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import NamedTuple

from recommender.api.queries import Limits
from recommender.api.service import RecommenderService
from recommender.domain import Query, Ranking
from recommender.models.vocabulary import Vocabulary, write_vocabulary
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.router import Router
from tests.support.fakes import answer, make_batcher, on_virtual_time
from tests.support.versions import version_of

ITEMS = 10_000
ROWS, LENGTH = 500, 2000


class Held(NamedTuple):
    """What a call held at most, and how often it let the loop go round."""

    rounds: int
    """How often others on the loop had their turn."""
    blocks: int
    """Objects in memory beyond those before the call."""


class ForgetfulEngine:
    """Answers at once and keeps nothing of what it was asked."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        return [answer(query) for query in queries]

    def stage(self, _: Sequence[Query]) -> None:
        return None

    def terminate(self) -> None:
        pass


class LongForOne(ForgetfulEngine):
    """Takes a second for a batch of one."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        if len(queries) == 1:
            await asyncio.sleep(1)
        return await super().run(queries)


class WholeCatalogue(ForgetfulEngine):
    """Recommends every item, the last one first."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        ranking = Ranking(list(reversed(range(ITEMS))), [float(item) for item in reversed(range(ITEMS))])
        return [ranking] * len(queries)


def service(engine: ForgetfulEngine | None = None, vocabulary: Vocabulary | None = None) -> RecommenderService:
    router = Router(retire_grace=1.0)
    batcher = make_batcher(engine or ForgetfulEngine(), max_batch_size=32, max_backlog=1024, slots=2)
    version = version_of(batcher, items=ITEMS, plain_history=LENGTH, vocabulary=vocabulary)
    router.adopt(router.add_lane("live", frozenset()), version)
    return RecommenderService(router, limits=Limits())


async def held(call: Awaitable[object]) -> Held:
    """Have a call answered, and look at every round of the loop meanwhile."""
    before, most, rounds = sys.getallocatedblocks(), 0, 0
    answered = asyncio.ensure_future(call)
    gc.disable()  # it would traverse what pytest has made
    try:
        while not answered.done():
            await asyncio.sleep(0)
            rounds += 1
            most = max(most, sys.getallocatedblocks() - before)
    finally:
        gc.enable()
    await answered
    return Held(rounds, most)


async def test_a_call_of_megabytes_is_read_and_let_go_of_part_by_part() -> None:
    drawn = random.Random(1)
    requests = [api.RecommendRequest(item_ids=drawn.choices(range(300, ITEMS), k=LENGTH)) for _ in range(ROWS)]
    message = api.BatchRecommendRequest(requests=requests).SerializeToString()
    del requests

    seen = await held(service().batch_recommend(message))

    assert seen.blocks < ROWS * LENGTH / 3
    assert seen.rounds > ROWS / 8


def test_a_large_call_pauses_while_a_single_one_is_open() -> None:
    async def ask() -> None:
        loop = asyncio.get_running_loop()
        answering = service(LongForOne())
        message = api.BatchRecommendRequest(
            requests=[api.RecommendRequest(item_ids=range(LENGTH)) for _ in range(64)]
        ).SerializeToString()
        started = loop.time()
        await answering.batch_recommend(message)
        assert loop.time() == started

        single = asyncio.create_task(answering.recommend(api.RecommendRequest(item_ids=[1])))
        await answering.batch_recommend(message)
        assert not single.done()
        assert loop.time() > started

        await single
        started = loop.time()
        await answering.batch_recommend(message)
        assert loop.time() == started

    on_virtual_time(ask())


async def test_the_results_of_a_call_of_many_parts_are_in_order() -> None:
    requests = [api.RecommendRequest(item_ids=[row] * LENGTH) for row in range(ROWS)]
    requests[7] = api.RecommendRequest(item_ids=[-1])
    message = api.BatchRecommendRequest(requests=requests).SerializeToString()
    response = await service().batch_recommend(message)

    assert response.results[7].WhichOneof("outcome") == "error"
    assert [result.response.scores[:] for result in response.results] == [
        [] if row == 7 else [float(row)] for row in range(ROWS)
    ]


async def test_a_reply_of_thousands_of_keys_is_written_part_by_part(tmp_path: Path) -> None:
    keys = [f"sku/{item}" for item in range(ITEMS)]
    write_vocabulary(keys, tmp_path / "vocabulary")
    answering = service(WholeCatalogue(), Vocabulary.open(tmp_path / "vocabulary", ITEMS))
    request = api.RecommendRequest(item_ids=[1], min_score=10.0)
    kept = list(reversed(keys[10:]))
    batch = api.BatchRecommendRequest(requests=[request] * 2).SerializeToString()

    alone = asyncio.ensure_future(answering.recommend(request))
    many = asyncio.ensure_future(answering.batch_recommend(batch))
    streamed = asyncio.ensure_future(answering.stream_recommend(api.StreamRecommendRequest(request=request)))

    assert (await held(alone)).rounds > 20
    assert list((await alone).item_keys) == kept
    assert [list(result.response.item_keys) for result in (await many).results] == [kept] * 2
    assert list((await streamed).response.item_keys) == kept
