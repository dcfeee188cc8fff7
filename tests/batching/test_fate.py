"""Isolation: a caller that leaves, fails, hangs or is late affects no other."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.batching.batches import CloseReason
from recommender.batching.cost import Cost
from recommender.batching.halving import PROBE
from recommender.batching.statistics import BatchEnded
from recommender.domain import Query, Ranking
from recommender.errors import (
    BacklogFullError,
    DeadlineError,
    EngineError,
    EngineHungError,
    InvalidRequestError,
    UnavailableError,
    Violation,
)
from tests.support.fakes import FakeEngine, VirtualLoop, answer, make_batcher, outcomes, query, start, turns, with_time


async def test_an_idle_engine_answers_at_once() -> None:
    batcher = make_batcher(FakeEngine())

    assert await batcher.submit(query(7, 8)) == answer(query(7, 8))


async def test_callers_who_come_together_share_a_batch() -> None:
    engine = FakeEngine()
    batcher = make_batcher(engine)
    callers = await start(batcher, 1, 2, 3)

    assert await outcomes(callers) == [answer(query(item)) for item in (1, 2, 3)]
    assert engine.sizes == [3]


async def test_callers_who_wait_when_a_slot_comes_free_are_the_next_batch_oldest_first() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4, 5)
    for _ in range(3):
        engine.waiting[0].release()
        await turns()

    assert [[each.history[0] for each in run.queries] for run in engine.runs] == [[0], [1, 2, 3, 4], [5]]
    assert await outcomes(callers) == [answer(query(item)) for item in range(6)]
    assert batcher.statistics().closed == {CloseReason.DRAINED: 2, CloseReason.FULL: 1}


async def test_the_next_batch_runs_before_the_callers_of_the_last_one_learn_of_it() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    runs_when_told = []

    async def ask() -> None:
        await batcher.submit(query(0))
        runs_when_told.append(len(engine.runs))

    first = asyncio.create_task(ask())
    await turns()
    rest = await start(batcher, 1, 2)
    engine.waiting[0].release()
    await first
    assert runs_when_told == [2]
    engine.waiting[0].release()
    await outcomes(rest)


async def test_several_slots_run_several_batches() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, slots=2)
    await start(batcher, 0)
    callers = await start(batcher, 1, 2)
    assert engine.sizes == [1, 2]
    assert batcher.statistics().running == 3
    for run in engine.waiting:
        run.release()
    await outcomes(callers)
    await batcher.close()


async def test_a_full_backlog_refuses_at_once_and_says_when_to_come_back() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    running = await start(batcher, *range(4))
    waiting = await start(batcher, *range(16))

    with pytest.raises(BacklogFullError) as refused:
        await batcher.submit(query(99))

    # Sixteen wait, four to a run of 0.010 + 4 × 0.001 seconds.
    assert refused.value.retry_after == pytest.approx(4 * 0.014)
    assert batcher.statistics().refused_full == 1
    engine.held = False
    engine.waiting[0].release()
    assert await outcomes(running + waiting) == [answer(query(item)) for item in (*range(4), *range(16))]


@pytest.mark.parametrize("leaver", range(3))
async def test_a_caller_who_leaves_a_backlog_frees_its_place_at_once_and_touches_nobody(leaver: int) -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_backlog=3)
    first = await start(batcher, 9)
    callers = await start(batcher, 0, 1, 2)
    callers.pop(leaver).cancel()
    await turns()
    callers += await start(batcher, 3)  # has a place again
    engine.held = False
    engine.waiting[0].release()

    left = [item for item in range(4) if item != leaver]
    assert await outcomes(first + callers) == [answer(query(item)) for item in (9, *left)]
    assert leaver not in [each.history[0] for run in engine.runs for each in run.queries]
    assert batcher.statistics().cancelled == 1


async def test_a_caller_who_leaves_a_running_batch_touches_no_batch_mate() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0, 1, 2)
    callers[1].cancel()
    await turns()
    engine.waiting[0].release()
    seen = await outcomes(callers)

    assert seen[0::2] == [answer(query(0)), answer(query(2))]
    assert isinstance(seen[1], asyncio.CancelledError)
    assert (batcher.statistics().answered, batcher.statistics().cancelled) == (2, 1)


Ending = Callable[[FakeEngine], None]
ENDINGS: dict[str, Ending] = {
    "answered": lambda engine: engine.waiting[0].release(),
    "failed": lambda engine: engine.waiting[0].fail(),
    "too few rows": lambda engine: engine.waiting[0].return_too_few(),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("turn", range(1, 13))
@pytest.mark.parametrize("leaver", range(3))
async def test_a_cancellation_at_any_turn_of_the_loop_touches_nobody(turn: int, leaver: int, ending: str) -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = [asyncio.create_task(batcher.submit(query(item))) for item in range(3)]
    released = False
    for number in itertools.count():
        if number == turn:
            callers[leaver].cancel()
        if engine.waiting and not released:
            released = True
            engine.held = False
            ENDINGS[ending](engine)
        await asyncio.sleep(0)
        if number > turn and all(caller.done() for caller in callers):
            break
        assert number < 100, "somebody waits for ever"
    seen = await outcomes(callers)

    others = [seen[place] for place in range(3) if place != leaver]
    assert others == [answer(query(item)) for item in range(3) if item != leaver]
    assert seen[leaver] == answer(query(leaver)) or isinstance(seen[leaver], asyncio.CancelledError)
    await asyncio.wait_for(batcher.drain(), 5)
    # A task that is cancelled before its first turn never ran.
    assert batcher.statistics().ended == (2 if turn == 0 else 3)


@with_time
async def test_a_late_caller_is_told_at_its_deadline_and_is_never_run() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    now = asyncio.get_running_loop().time
    first = await start(batcher, 0)
    deadline = now() + 1.0
    late, patient = (*await start(batcher, 1, deadline=deadline), *await start(batcher, 2))
    with pytest.raises(DeadlineError, match="passed while the request waited for"):
        await late
    assert now() == pytest.approx(deadline)
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes([*first, patient]) == [answer(query(0)), answer(query(2))]
    assert [[each.history[0] for each in run.queries] for run in engine.runs] == [[0], [2]]
    assert batcher.statistics().expired == 1


@with_time
async def test_a_caller_who_is_late_while_its_batch_runs_is_told_at_its_deadline() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    now = asyncio.get_running_loop().time
    deadline = now() + 1.0
    late, patient = [
        asyncio.create_task(batcher.submit(query(item), deadline=at)) for item, at in ((1, deadline), (2, math.inf))
    ]
    with pytest.raises(DeadlineError, match="passed while the request"):
        await late
    assert now() == pytest.approx(deadline)
    engine.waiting[0].release()

    assert await patient == answer(query(2))
    assert batcher.statistics().expired == 1


@with_time
async def test_work_that_cannot_make_it_is_refused_at_the_door_with_the_estimate() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    now = asyncio.get_running_loop().time()
    running = await start(batcher, 0)
    # The run before it takes 11 ms, its own as long.
    with pytest.raises(DeadlineError, match=r"expected in 22\.0 ms and the deadline is in 15\.0 ms"):
        await batcher.submit(query(1), deadline=now + 0.015)
    assert batcher.statistics().refused_deadline == 1
    engine.waiting[0].release()
    assert await outcomes(running) == [answer(query(0))]


@settings(deadline=None)
@given(rows=st.integers(1, 16), data=st.data())
def test_of_a_failing_batch_only_the_guilty_rows_fail(rows: int, data: st.DataObject) -> None:
    guilty = data.draw(st.sets(st.integers(0, rows - 1), max_size=rows))

    async def run() -> None:
        engine = FakeEngine(poison=frozenset(item + 100 for item in guilty))
        batcher = make_batcher(engine, max_batch_size=16)
        seen = await outcomes(await start(batcher, *range(100, 100 + rows)))

        assert {place for place, outcome in enumerate(seen) if isinstance(outcome, EngineError)} == guilty
        assert all(seen[place] == answer(query(100 + place)) for place in set(range(rows)) - guilty)
        levels = Counter(each for run in engine.runs for each in run.queries if each != PROBE)
        assert max(levels.values()) <= math.ceil(math.log2(rows)) + 1
        await batcher.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


async def test_a_broken_engine_fails_everybody_after_a_few_runs() -> None:
    class Broken(FakeEngine):
        times = 0

        async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:  # noqa: ARG002
            self.times += 1
            raise RuntimeError("broken")

    engine = Broken()
    batcher = make_batcher(engine, max_batch_size=64, max_backlog=64)
    seen = await outcomes(await start(batcher, *range(64)))

    assert {type(outcome) for outcome in seen} == {EngineError}
    # The batch, its halves, and the probe.
    assert engine.times == 4


async def test_a_row_at_fault_is_told_so_and_its_batch_mates_are_answered() -> None:
    fault = InvalidRequestError(Violation("item_ids", "an id is not in the catalogue"))

    class Strict(FakeEngine):
        async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
            if any(each.history == (66,) for each in queries):
                raise fault if len(queries) == 1 else RuntimeError("a row is out of bounds")
            return [answer(each) for each in queries]

    batcher = make_batcher(Strict())
    assert await outcomes(await start(batcher, 1, 66, 2)) == [answer(query(1)), fault, answer(query(2))]
    assert batcher.statistics().invalid == 1


@with_time
async def test_a_failed_batch_is_not_tried_again_for_who_is_late_by_then() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    now = asyncio.get_running_loop().time()
    late, *others = [
        asyncio.create_task(batcher.submit(query(item), deadline=at))
        for item, at in ((1, now + 1.0), (2, math.inf), (3, math.inf))
    ]
    await asyncio.sleep(2.0)
    engine.held = False
    engine.waiting[0].fail()

    assert await outcomes(others) == [answer(query(2)), answer(query(3))]
    assert isinstance(late.exception(), DeadlineError)
    assert [each.history[0] for run in engine.runs[1:] for each in run.queries] == [2, 3]


@with_time
async def test_an_engine_that_hangs_breaks_the_batcher_and_everybody_is_told() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, engine_timeout=5.0)
    started = asyncio.get_running_loop().time()
    running = await start(batcher, 1, 2)
    waiting = await start(batcher, 3, 4)
    lost = await batcher.broken()

    assert asyncio.get_running_loop().time() - started == pytest.approx(5.0)
    assert isinstance(lost, EngineHungError)
    assert [type(each) for each in await outcomes(running)] == [EngineHungError] * 2
    assert [type(each) for each in await outcomes(waiting)] == [UnavailableError] * 2
    assert engine.terminated == 1
    with pytest.raises(UnavailableError):
        await batcher.submit(query(5))
    assert batcher.statistics().ended == 5


@with_time
async def test_a_pause_of_the_whole_process_is_no_engine_that_hangs() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, engine_timeout=5.0)
    callers = await start(batcher, 1)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.pass_time(60.0)
    await turns()
    engine.waiting[0].release()

    assert await outcomes(callers) == [answer(query(1))]
    assert engine.terminated == 0


async def test_an_engine_that_cancels_itself_breaks_the_batcher_and_everybody_is_told() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    running = await start(batcher, 1)
    waiting = await start(batcher, 2)
    engine.waiting[0].done.cancel()

    assert isinstance(await batcher.broken(), EngineError)
    assert [type(each) for each in await outcomes(running + waiting)] == [EngineError, UnavailableError]


class FaultyClock:
    """A clock that fails on demand, as any bug of the batcher would."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self) -> float:
        if self.broken:
            raise ArithmeticError("a bug")
        return asyncio.get_running_loop().time()


async def test_a_bug_where_batches_are_started_leaves_nobody_waiting() -> None:
    engine, clock = FakeEngine(held=True), FaultyClock()
    batcher = make_batcher(engine, clock=clock)
    running = await start(batcher, 1)
    waiting = await start(batcher, 2)
    clock.broken = True
    engine.waiting[0].release()
    await turns()

    assert "a bug" in str(await batcher.broken())
    seen = await outcomes(running + waiting)
    assert isinstance(seen[1], UnavailableError)


@with_time
async def test_a_bug_where_deadlines_are_watched_leaves_nobody_waiting() -> None:
    engine, clock = FakeEngine(held=True), FaultyClock()
    batcher = make_batcher(engine, clock=clock)
    running = await start(batcher, 1)
    waiting = await start(batcher, 2, deadline=clock() + 1.0)
    clock.broken = True

    assert "a bug" in str(await batcher.broken())
    clock.broken = False
    engine.waiting[0].release()
    assert [type(each) for each in await outcomes(running + waiting)] == [Ranking, UnavailableError]


async def test_a_closed_batcher_gives_everybody_an_end() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 1, 2)
    callers += await start(batcher, 3)
    await batcher.close()

    assert [type(each) for each in await outcomes(callers)] == [UnavailableError] * 3
    with pytest.raises(UnavailableError):
        await batcher.submit(query(4))
    assert batcher.statistics().unavailable == 4


async def test_a_drain_waits_for_who_waits_and_for_what_runs() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    first = asyncio.create_task(batcher.submit(query(1)))
    await asyncio.sleep(0)  # it has come, and nothing was started for it yet
    drained = asyncio.create_task(batcher.drain())
    await turns()
    second = await start(batcher, 2)
    assert not drained.done()
    engine.waiting[0].release()
    await turns()
    assert not drained.done()
    engine.waiting[0].release()
    await drained
    assert await outcomes([first, *second]) == [answer(query(1)), answer(query(2))]


async def test_equal_requests_share_a_row_and_each_is_answered() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True)
    first = await start(batcher, 0)
    callers = await start(batcher, 1, 1, 1, 2)
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes(first + callers) == [answer(query(item)) for item in (0, 1, 1, 1, 2)]
    assert engine.sizes == [1, 2]


async def test_a_shared_row_lives_until_its_last_waiter_leaves() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True)
    first = await start(batcher, 0)
    one, two, three = await start(batcher, 1, 1, 2)
    one.cancel()
    await turns()
    assert batcher.statistics().waiting == 2
    three.cancel()
    await turns()
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes([*first, two]) == [answer(query(0)), answer(query(1))]
    assert [each.history for each in engine.runs[1].queries] == [(1,)]


async def test_the_bound_of_a_deduplicating_backlog_counts_waiters() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True, max_backlog=3)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 1, 1)
    with pytest.raises(BacklogFullError):
        await batcher.submit(query(1))
    engine.held = False
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in (0, 1, 1, 1)]


async def test_equal_histories_of_another_user_are_rows_of_their_own() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True)
    first = await start(batcher, 0)
    asked = [Query((1,), 3, user=user) for user in (1, 2, 1)]
    callers = [asyncio.create_task(batcher.submit(each)) for each in asked]
    await turns()
    engine.held = False
    engine.waiting[0].release()
    await outcomes(first + callers)

    assert [[each.user for each in run.queries] for run in engine.runs] == [[0], [1, 2]]


async def test_equal_histories_with_other_features_are_rows_of_their_own() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True)
    first = await start(batcher, 0)
    asked = [Query((1,), 3, features=(age, True)) for age in (1.5, 2.5, 1.5)]
    callers = [asyncio.create_task(batcher.submit(each)) for each in asked]
    await turns()
    engine.held = False
    engine.waiting[0].release()
    await outcomes(first + callers)

    assert [[each.features for each in run.queries] for run in engine.runs] == [[()], [(1.5, True), (2.5, True)]]


async def test_equal_histories_with_other_types_or_times_are_rows_of_their_own() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True)
    first = await start(batcher, 0)
    plain = Query((1,), 3)
    others = [plain._replace(history_types=(2,)), plain._replace(history_times=(2,)), plain, plain]
    callers = [asyncio.create_task(batcher.submit(each, deadline=math.inf)) for each in others]
    await turns()
    engine.held = False
    engine.waiting[0].release()

    await outcomes([*first, *callers])
    assert [list(run.queries) for run in engine.runs[1:]] == [others[:3]]


async def test_equal_histories_of_another_k_are_rows_of_their_own() -> None:
    engine = FakeEngine()
    batcher = make_batcher(engine, deduplicate=True)
    asked = [query(1, k=3), query(1, k=4)]
    assert await asyncio.gather(*map(batcher.submit, asked)) == [answer(each) for each in asked]


async def test_a_row_that_is_too_large_for_memory_fails_alone_and_a_batch_that_is_runs_in_parts() -> None:
    class Narrow(FakeEngine):
        """Has memory for runs of 100 cells, padding included."""

        async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
            if len(queries) * max(len(query.history) for query in queries) > 100:
                raise MemoryError
            return await super().run(queries)

    batcher = make_batcher(Narrow(), max_batch_size=8, max_backlog=16)
    short = [query(item) for item in range(6)]
    large, too_large = query(*range(60)), query(*range(101))
    seen = await batcher.submit_many([*short, large, too_large])

    assert seen[:7] == [answer(each) for each in (*short, large)]
    assert isinstance(seen[7], EngineError)
    assert await batcher.submit(query(1)) == answer(query(1))


async def test_a_large_call_never_holds_up_a_single_caller_by_more_than_a_batch() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=4, max_backlog=16)
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(1000)]))
    await turns()
    (single,) = await start(batcher, 5000)
    runs = 0
    while not single.done():
        engine.waiting[0].release()
        await turns()
        runs += 1

    assert runs <= 3
    assert batcher.statistics().waiting <= 4
    engine.held = False
    engine.waiting[0].release()
    assert await large == [answer(query(item)) for item in range(1000)]
    assert await single == answer(query(5000))


async def runs_beside_large_calls(cost: Cost) -> list[list[int]]:
    """The items of each run where callers 1000 and 1001 come while two calls have rows that wait."""
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=8, max_backlog=100, cost=cost)
    callers: list[asyncio.Task[Any]] = [
        asyncio.create_task(batcher.submit_many([query(item) for item in items]))
        for items in (range(24), range(100, 124))
    ]
    await turns()
    for single in (1000, 1001):
        callers += await start(batcher, single)
        for _ in range(2):
            engine.waiting[0].release()
            await turns()
    for caller in callers:
        caller.cancel()
    return [[each.history[0] for each in run.queries] for run in engine.runs]


async def test_single_callers_go_before_rows_that_wait_and_rows_go_after_them() -> None:
    runs = await runs_beside_large_calls(Cost(0.001, 0.010))

    assert [len(run) for run in runs] == [8, 1, 8, 1, 8]
    assert [run[0] for run in runs] == [0, 1000, 100, 1001, 8]


async def test_single_callers_share_runs_with_rows_where_a_run_of_few_costs_as_much_as_one_of_many() -> None:
    runs = await runs_beside_large_calls(Cost(0.010, 0.001))

    assert [len(run) for run in runs] == [8] * 5
    assert {1000, 1001} <= {item for run in runs for item in run}


async def test_calls_of_many_that_come_together_take_turns_of_a_batch_each() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=8, max_backlog=100)
    firsts = range(0, 400, 100)
    large = [asyncio.create_task(batcher.submit_many([query(first + n) for n in range(8)])) for first in firsts]
    await turns()
    while engine.waiting:
        engine.waiting[0].release()
        await turns()

    assert await asyncio.gather(*large) == [[answer(query(first + n)) for n in range(8)] for first in firsts]
    assert [[each.history[0] for each in run.queries] for run in engine.runs] == [
        list(range(first, first + 8)) for first in firsts
    ]


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_drain_waits_for_queries_of_a_call_that_are_still_to_come(leaves: bool) -> None:  # noqa: FBT001
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=4, max_backlog=16)
    calls = [asyncio.create_task(batcher.submit_many([query(item) for item in range(20)])) for _ in range(4)]
    await turns()
    drained = asyncio.create_task(batcher.drain())
    if leaves:
        for call in calls:
            call.cancel()
    while engine.waiting:
        assert not drained.done()
        engine.waiting[0].release()
        await turns()
    await asyncio.wait_for(drained, 5)
    await batcher.close()

    for call in calls if not leaves else ():
        assert await call == [answer(query(item)) for item in range(20)]


async def test_a_call_that_leaves_before_its_turn_holds_up_no_other() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=4, max_backlog=100)
    calls = [asyncio.create_task(batcher.submit_many([query(item) for item in range(8)])) for _ in range(6)]
    await turns()
    for leaver in calls[2:5]:
        leaver.cancel()
    await turns()
    engine.held = False
    engine.waiting[0].release()

    for stayer in (*calls[:2], calls[5]):
        assert await stayer == [answer(query(item)) for item in range(8)]
    seen = batcher.statistics()
    assert (seen.waiting, seen.cancelled) == (0, 24)


async def test_a_hundred_large_calls_hold_up_a_single_caller_by_two_batches_and_no_more() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=32, max_backlog=200)
    large = [asyncio.create_task(batcher.submit_many([query(item) for item in range(100)])) for _ in range(100)]
    await turns()
    assert batcher.statistics().waiting <= 2 * 32
    (single,) = await start(batcher, 5000)
    runs = 0
    while not single.done():
        engine.waiting[0].release()
        await turns()
        runs += 1

    assert runs <= 3
    engine.held = False
    engine.waiting[0].release()
    assert [await each for each in large] == [[answer(query(item)) for item in range(100)]] * 100


async def test_a_call_of_many_has_an_outcome_for_each_query_in_order() -> None:
    engine = FakeEngine(poison=frozenset({2}))
    batcher = make_batcher(engine)
    seen = await batcher.submit_many([query(item) for item in range(6)])

    assert isinstance(seen[2], EngineError)
    assert [each for place, each in enumerate(seen) if place != 2] == [answer(query(item)) for item in (0, 1, 3, 4, 5)]
    assert await batcher.submit_many([]) == []


async def test_a_call_of_many_that_leaves_frees_every_place_and_each_of_its_queries_has_ended() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    (first,) = await start(batcher, 9)
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(100)]))
    await turns()
    large.cancel()
    await turns()
    assert batcher.statistics().waiting == 0
    assert batcher.statistics().cancelled == 100
    engine.waiting[0].release()
    assert await first == answer(query(9))
    assert engine.sizes == [1]


async def test_a_call_whose_queries_are_refused_gives_way_between_them() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_batch_size=4, max_backlog=4)
    await start(batcher, *range(4))
    await turns()
    await start(batcher, *range(4, 8))
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(1000)]))
    gave_way = 0
    while not large.done():
        await turns(1)
        gave_way += 1

    assert [type(each) for each in await large] == [BacklogFullError] * 1000
    assert gave_way >= 4
    assert batcher.statistics().refused_full == 1000


async def test_a_call_that_leaves_while_its_queries_are_refused_has_ended_each_of_them() -> None:
    batcher = make_batcher(FakeEngine(held=True), max_batch_size=4, max_backlog=4)
    await start(batcher, *range(4))
    await turns()
    await start(batcher, *range(4, 8))
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(1000)]))
    await turns(1)
    large.cancel()
    await turns()
    seen = batcher.statistics()

    assert 0 < seen.refused_full < 1000
    assert seen.refused_full + seen.cancelled == 1000


@with_time
async def test_a_call_of_many_has_what_came_in_time_and_is_told_of_the_rest() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    now = asyncio.get_running_loop().time
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(12)], deadline=now() + 1.0))
    await asyncio.sleep(0.5)
    engine.waiting[0].release()
    seen = await large

    assert seen[:4] == [answer(query(item)) for item in range(4)]
    assert [type(each) for each in seen[4:]] == [DeadlineError] * 8
    assert now() == pytest.approx(1001.0)
    await batcher.close()


async def test_statistics_are_a_record_that_does_not_change() -> None:
    batcher = make_batcher(FakeEngine())
    before = batcher.statistics()
    await batcher.submit(query(1, 2, 3))
    after = batcher.statistics()

    assert (before.answered, after.answered) == (0, 1)
    assert (dict(before.batches), dict(after.batches)) == ({}, {1: 1})
    assert sum(after.wait_times) == sum(after.run_times) == 1
    assert repr(batcher) == "<Batcher open, 0 waiting, 0 running, 1 answered>"


async def test_an_observer_is_told_of_every_batch_and_one_that_fails_harms_nobody() -> None:
    seen: list[BatchEnded] = []
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def observe(ended: BatchEnded) -> None:
        seen.append(ended)
        raise LookupError("a bug of the observer")

    batcher = make_batcher(FakeEngine(), observer=observe)
    await outcomes(await start(batcher, 1, 2))
    await batcher.submit_many([query(3, 4)])
    await turns()

    assert [(each.rows, each.callers, each.cells, each.failed) for each in seen] == [(2, 2, 2, False), (1, 1, 2, False)]
    assert len(reported) == 2
