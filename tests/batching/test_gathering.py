"""A batch gathers callers while they keep arriving, and never waits without reason."""

from __future__ import annotations

import asyncio
import math

from hypothesis import given
from hypothesis import strategies as st

from recommender.batching.gathering import Gathering
from recommender.domain import Ranking
from tests.support.fakes import FakeEngine, answer, make_batcher, query, turns, with_time


async def one_a_turn(batcher_wait: float, callers: int, between: int = 3) -> FakeEngine:
    """The batches of an engine whose callers arrive a few turns of the loop apart."""
    engine = FakeEngine()
    batcher = make_batcher(engine, max_wait=batcher_wait, max_batch_size=64, max_backlog=64)
    tasks: list[asyncio.Task[Ranking]] = []
    for item in range(callers):
        tasks.append(asyncio.create_task(batcher.submit(query(item))))
        await turns(between)
    assert await asyncio.gather(*tasks) == [answer(query(item)) for item in range(callers)]
    await batcher.close()
    return engine


async def test_callers_who_come_one_after_the_other_share_a_batch() -> None:
    assert (await one_a_turn(1.0, 10)).sizes == [10]


async def test_without_a_wait_each_of_them_is_run_as_it_comes() -> None:
    assert (await one_a_turn(0.0, 10)).sizes == [1] * 10


@with_time
async def test_a_caller_by_itself_waits_for_no_time_at_all() -> None:
    batcher = make_batcher(FakeEngine(), max_wait=1.0)
    started = asyncio.get_running_loop().time()

    assert await batcher.submit(query(1)) == answer(query(1))
    assert asyncio.get_running_loop().time() == started


async def test_a_batch_with_enough_rows_starts_although_callers_keep_coming() -> None:
    assert max((await one_a_turn(1.0, 64)).sizes) == 32


def quiet_turns(gathering: Gathering, waiting: int) -> int:
    """Turns of the loop until a batch of that many starts, if no other caller arrives."""
    gathering.begin(0.0)
    taken = 0
    while gathering.goes_on(waiting, 0.0, math.inf):
        taken += 1
    return taken


def test_where_callers_come_by_themselves_a_batch_hardly_waits_for_another() -> None:
    gathering = Gathering(1.0, 64)
    first = quiet_turns(gathering, 1)
    assert [quiet_turns(gathering, 1) for _ in range(9)] == [first] * 7 + [2] * 2

    assert quiet_turns(gathering, 2) == first, "somebody came"
    assert quiet_turns(gathering, 1) == first


async def test_callers_who_come_together_after_many_by_themselves_share_a_batch() -> None:
    engine = FakeEngine()
    batcher = make_batcher(engine, max_wait=1.0, max_batch_size=64)
    for item in range(12):
        assert await batcher.submit(query(item)) == answer(query(item))
    callers = []
    for item in range(5):
        callers.append(asyncio.create_task(batcher.submit(query(item))))
        await turns(1)

    assert await asyncio.gather(*callers) == [answer(query(item)) for item in range(5)]
    assert engine.sizes == [1] * 12 + [5]
    await batcher.close()


@with_time
async def test_a_batch_starts_in_time_for_the_earliest_deadline() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_wait=1.0)
    now = asyncio.get_running_loop().time()
    caller = asyncio.create_task(batcher.submit(query(1), deadline=now + 0.011))  # what one row costs
    await turns(3)

    assert engine.sizes == [1]
    engine.waiting[0].release()
    assert await caller == answer(query(1))


@given(longest=st.floats(0.0, 0.1), enough=st.integers(1, 64), comings=st.lists(st.integers(0, 3), max_size=200))
def test_gathering_ends_whatever_comes(longest: float, enough: int, comings: list[int]) -> None:
    gathering, now, waiting, turns_taken = Gathering(longest, enough), 100.0, 1, 0
    gathering.begin(now)
    while gathering.goes_on(waiting, now, math.inf):
        waiting += comings.pop() if comings else 0
        now += 0.0001
        turns_taken += 1
        assert waiting <= enough + 3
        assert now - 100.0 <= longest + 0.0002
    assert turns_taken == 0 or longest > 0
