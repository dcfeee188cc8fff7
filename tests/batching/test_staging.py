"""The engine starts a staged batch without the event loop; callers that leave in time are in no run."""

from __future__ import annotations

import asyncio

import pytest

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.batching.halving import PROBE
from recommender.batching.statistics import BatchEnded
from recommender.domain import Ranking
from recommender.errors import BacklogFullError, DeadlineError, EngineError, EngineHungError, UnavailableError
from tests.support.fakes import FakeEngine, Run, answer, make_batcher, outcomes, query, start, turns, with_time


def items(run: Run) -> list[int]:
    return [each.history[0] for each in run.queries]


async def test_the_engine_goes_on_with_a_full_batch_before_the_loop_knows_of_the_end_of_the_last_run() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4, 5)
    engine.waiting[0].release()
    assert [items(run) for run in engine.runs] == [[0], [1, 2, 3, 4]]
    engine.waiting[0].release()
    await turns()
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in range(6)]
    assert [items(run) for run in engine.runs] == [[0], [1, 2, 3, 4], [5]]


async def test_one_full_batch_after_the_other_is_staged_as_long_as_enough_wait() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, *range(13))
    assert [items(run) for run in engine.runs] == [[0, 1, 2, 3]]
    for ended in range(1, 3):
        engine.waiting[0].release()
        assert len(engine.runs) == ended + 1
        await turns()
    engine.held = False
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in range(13)]
    assert engine.sizes == [4, 4, 4, 1]


async def ended_at_once(engine: FakeEngine) -> int:
    """End every run that the engine has or begins while the loop is busy; how many these were."""
    before = len(engine.runs)
    while engine.waiting:
        engine.waiting[0].release()
    await turns()
    return len(engine.runs) - before


async def test_an_engine_that_stood_idle_beside_a_busy_loop_has_twice_as_many_batches_staged_each_time() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_backlog=1000)
    callers = await start(batcher, *range(201))
    begun = [await ended_at_once(engine) for _ in range(5)]
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes(callers) == [answer(query(item)) for item in range(201)]
    assert begun[0] >= 2
    assert begun == sorted(begun)
    assert begun[-1] > 16
    assert [item for run in engine.runs for item in items(run)] == list(range(201))


async def test_fewer_are_staged_when_the_loop_keeps_up_again() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_backlog=1000)
    callers = await start(batcher, *range(800))
    for _ in range(5):
        await ended_at_once(engine)
    staged = [len(engine.staged)]
    for _ in range(70):
        engine.waiting[0].release()
        await turns()
        staged.append(len(engine.staged))
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes(callers) == [answer(query(item)) for item in range(800)]
    assert staged[0] > 8
    assert staged == sorted(staged, reverse=True)
    assert staged[-1] == 1


async def busy_with_several_staged(engine: FakeEngine, batcher: Batcher) -> list[asyncio.Task[Ranking]]:
    """Callers of whom one batch runs and three are staged."""
    callers = await start(batcher, *range(100, 120))
    while callers and not callers[-1].done():
        await ended_at_once(engine)
    callers = await start(batcher, *range(20))
    assert len(engine.staged) >= 3
    return callers


async def test_a_caller_who_leaves_takes_its_batch_back_and_those_behind_it_but_none_before() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_backlog=1000)
    callers = await busy_with_several_staged(engine, batcher)
    first, second, third = engine.staged[:3]
    leaver = items(second.run)[0]
    callers[leaver].cancel()
    await turns()

    assert (first.taken_back, second.taken_back, third.taken_back) == (False, True, True)
    engine.held = False
    engine.waiting[0].release()
    seen = await outcomes(callers)
    assert isinstance(seen.pop(leaver), asyncio.CancelledError)
    assert seen == [answer(query(item)) for item in range(20) if item != leaver]
    assert leaver not in [item for run in engine.runs for item in items(run)]
    assert batcher.statistics().cancelled == 1


async def test_rows_of_a_large_call_wait_for_one_batch_of_single_callers_and_not_for_all_that_were_staged() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, max_backlog=1000)
    callers = await busy_with_several_staged(engine, batcher)
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(200, 204)]))
    await turns()
    assert [staged.taken_back for staged in engine.staged[:3]] == [False, True, True]
    begun = len(engine.runs)
    engine.held = False
    engine.waiting[0].release()

    assert await large == [answer(query(item)) for item in range(200, 204)]
    assert await outcomes(callers) == [answer(query(item)) for item in range(20)]
    assert 200 in [item for run in engine.runs[begun : begun + 3] for item in items(run)]


async def test_a_batch_that_is_divided_by_length_is_staged_too() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, cost=Cost(0.001, 0.0001, 0.001))
    callers = await start(batcher, 0)
    long = [asyncio.create_task(batcher.submit(query(*range(1, 31)))) for _ in range(2)]
    await turns()
    callers += await start(batcher, 1, 2)
    assert [len(staged.run.queries) for staged in engine.staged] == [2]
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes([*callers, *long]) == [
        *(answer(query(item)) for item in range(3)),
        *[answer(query(*range(1, 31)))] * 2,
    ]
    assert engine.sizes == [1, 2, 2]


async def test_a_batch_that_others_may_join_waits_for_its_slot() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3)
    assert not engine.staged
    callers += await start(batcher, 4)
    assert [items(staged.run) for staged in engine.staged] == [[1, 2, 3, 4]]
    engine.held = False
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in range(5)]


async def test_where_equal_requests_share_a_row_nothing_is_staged_since_others_may_join() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, deduplicate=True)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    assert not engine.staged
    callers += await start(batcher, 1)
    engine.held = False
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in (0, 1, 2, 3, 4, 1)]
    assert [items(run) for run in engine.runs] == [[0], [1, 2, 3, 4]]


async def test_a_caller_who_leaves_before_the_engine_begins_is_in_no_run_and_another_has_the_place() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4, 5)
    callers[2].cancel()
    await turns()
    engine.held = False
    engine.waiting[0].release()
    seen = await outcomes(callers)

    assert [items(run) for run in engine.runs] == [[0], [1, 3, 4, 5]]
    assert isinstance(seen.pop(2), asyncio.CancelledError)
    assert seen == [answer(query(item)) for item in (0, 1, 3, 4, 5)]
    assert batcher.statistics().cancelled == 1


async def test_a_caller_who_leaves_just_after_the_engine_has_begun_harms_nobody_and_is_counted_once() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4, 5)
    engine.waiting[0].release()
    callers[2].cancel()
    engine.held = False
    await turns()
    engine.waiting[0].release()
    seen = await outcomes(callers)

    assert [items(run) for run in engine.runs] == [[0], [1, 2, 3, 4], [5]]
    assert isinstance(seen.pop(2), asyncio.CancelledError)
    assert seen == [answer(query(item)) for item in (0, 1, 3, 4, 5)]
    assert (batcher.statistics().cancelled, batcher.statistics().answered) == (1, 5)


async def test_a_call_of_many_that_leaves_takes_its_rows_out_of_the_staged_batch() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0, 1)
    large = asyncio.create_task(batcher.submit_many([query(item) for item in range(10, 100)]))
    callers += await start(batcher, 2)
    large.cancel()
    await turns()
    engine.held = False
    engine.waiting[0].release()

    assert await outcomes(callers) == [answer(query(item)) for item in range(3)]
    assert [items(run) for run in engine.runs] == [[0, 1], [2]]
    assert batcher.statistics().cancelled == 90


@with_time
async def test_a_caller_who_is_late_before_the_engine_begins_is_in_no_run() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    now = asyncio.get_running_loop().time
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, deadline=now() + 1.0)
    callers += await start(batcher, 2, 3, 4)
    await asyncio.sleep(1.5)
    engine.held = False
    engine.waiting[0].release()
    seen = await outcomes(callers)

    assert [items(run) for run in engine.runs] == [[0], [2, 3, 4]]
    assert isinstance(seen.pop(1), DeadlineError)
    assert seen == [answer(query(item)) for item in (0, 2, 3, 4)]


@with_time
async def test_a_caller_who_is_late_when_the_slot_comes_free_is_in_no_run_although_its_timer_has_not_fired() -> None:
    engine, ahead = FakeEngine(held=True), 0.0
    loop = asyncio.get_running_loop()
    batcher = make_batcher(engine, clock=lambda: loop.time() + ahead)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, deadline=loop.time() + 1.0)
    callers += await start(batcher, 2, 3, 4)
    (staged,) = engine.staged
    engine.staged.clear()  # the engine is slow to come to it
    ahead = 2.0
    engine.held = False
    engine.waiting[0].release()
    seen = await outcomes(callers)

    assert staged.taken_back
    assert [items(run) for run in engine.runs] == [[0], [2, 3, 4]]
    assert isinstance(seen[1], DeadlineError)


async def test_an_engine_that_is_slow_to_come_to_the_staged_batch_answers_it_once() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    late = engine.staged.copy()
    engine.staged.clear()
    engine.waiting[0].release()
    await turns()
    assert batcher.statistics().running == 4
    assert engine.sizes == [1]
    late[0].run.release()
    assert await outcomes(callers) == [answer(query(item)) for item in range(5)]


async def test_the_rows_of_a_failed_batch_are_tried_again_before_what_was_staged() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0, 1)
    callers += await start(batcher, 2, 3, 4, 5)
    engine.held, engine.poison = False, frozenset({1})
    engine.staged, kept = [], engine.staged
    engine.waiting[0].fail()
    seen = await outcomes(callers)

    assert [items(run) for run in engine.runs] == [[0, 1], [0], [1], [2, 3, 4, 5]]
    assert kept[0].taken_back
    assert isinstance(seen.pop(1), EngineError)
    assert seen == [answer(query(item)) for item in (0, 2, 3, 4, 5)]


async def test_while_a_failed_batch_is_tried_again_nothing_is_staged_between_its_rows() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0, 1)
    engine.waiting[0].fail()
    await turns()
    assert engine.sizes == [2, 1]
    callers += await start(batcher, 2, 3, 4, 5)
    assert not engine.staged
    engine.held = False
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in range(6)]
    assert engine.sizes == [2, 1, 1, 4]


async def test_a_staged_batch_that_fails_is_halved_like_any_other() -> None:
    engine = FakeEngine(held=True, poison=frozenset({3}))
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    engine.held = False
    engine.waiting[0].release()
    seen = await outcomes(callers)

    assert [items(run) for run in engine.runs] == [[0], [1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]
    assert PROBE not in [each for run in engine.runs for each in run.queries]
    assert isinstance(seen.pop(3), EngineError)
    assert seen == [answer(query(item)) for item in (0, 1, 2, 4)]


async def test_closing_tells_those_in_a_staged_batch_and_the_engine_never_begins_it() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    await batcher.close()

    assert [type(each) for each in await outcomes(callers)] == [UnavailableError] * 5
    assert [staged.taken_back for staged in engine.staged] == [True]
    assert engine.sizes == [1]


async def test_closing_just_after_the_engine_has_begun_a_staged_batch_tells_everybody() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    engine.waiting[0].release()
    await batcher.close()

    first, *rest = await outcomes(callers)
    assert isinstance(first, Ranking | UnavailableError)
    assert [type(each) for each in rest] == [UnavailableError] * 4


@with_time
async def test_a_staged_batch_has_the_whole_engine_timeout_for_itself() -> None:
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, engine_timeout=1.0)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    await asyncio.sleep(0.9)
    engine.waiting[0].release()
    await asyncio.sleep(0.9)
    engine.waiting[0].release()
    assert await outcomes(callers) == [answer(query(item)) for item in range(5)]

    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    engine.waiting[0].release()
    seen = await outcomes(callers)
    assert [type(each) for each in seen] == [Ranking, *[EngineHungError] * 4]
    await batcher.close()


@with_time
async def test_times_of_a_staged_batch_count_from_when_the_engine_began_it() -> None:
    seen: list[BatchEnded] = []
    engine = FakeEngine(held=True)
    batcher = make_batcher(engine, observer=seen.append)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    await asyncio.sleep(0.5)
    engine.waiting[0].release()
    await asyncio.sleep(0.25)
    engine.waiting[0].release()
    await outcomes(callers)
    await turns()

    assert [each.rows for each in seen] == [1, 4]
    assert [each.longest_wait for each in seen] == pytest.approx([0.0, 0.5])
    assert [each.run for each in seen] == pytest.approx([0.5, 0.25])
    assert batcher.statistics().wait_seconds == pytest.approx(4 * 0.5)
    assert batcher.statistics().run_seconds == pytest.approx(0.75)


@with_time
async def test_a_run_that_the_loop_was_too_busy_to_see_begin_is_as_long_as_it_was() -> None:
    seen: list[BatchEnded] = []
    engine, busy = FakeEngine(held=True), 0.0
    loop = asyncio.get_running_loop()
    batcher = make_batcher(engine, observer=seen.append, clock=lambda: loop.time() + busy)
    callers = await start(batcher, 0)
    callers += await start(batcher, 1, 2, 3, 4)
    engine.waiting[0].release()
    busy = 0.25
    engine.waiting[0].release()
    await outcomes(callers)
    await turns()

    assert [each.run for each in seen] == pytest.approx([0.25, 0.25])
    assert [each.longest_wait for each in seen] == pytest.approx([0.0, 0.0])
    assert batcher.statistics().run_seconds == pytest.approx(0.5)


async def test_a_run_costs_what_the_engine_took_however_late_the_loop_sees_its_end() -> None:
    engine, busy = FakeEngine(held=True), 0.0
    loop = asyncio.get_running_loop()
    batcher = make_batcher(engine, clock=lambda: loop.time() + busy)
    await start(batcher, *range(9))
    for _ in range(10):
        engine.waiting[0].release()  # and the staged batch begins
        await turns()
        await start(batcher, *range(4))
        engine.waiting[0].release()
        busy += 1.0
        await turns()
        await start(batcher, *range(4))
    callers = await start(batcher, *range(17))
    (refused, *_) = [caller.exception() for caller in callers if caller.done()]

    assert isinstance(refused, BacklogFullError)
    assert refused.retry_after < 0.5
    engine.held = False
    engine.waiting[0].release()
    await batcher.drain()
