"""Long computations on the event loop: they take turns, and others get theirs."""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import NoReturn

import pytest

from recommender.threads import Turns
from tests.support.fakes import on_virtual_time


class Clock:
    """Time that passes only by work."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, _: int) -> None:
        self.now += 0.000125


async def turns_of_the_loop(until: asyncio.Event) -> int:
    for count in itertools.count():
        if until.is_set():
            return count
        await asyncio.sleep(0)
    raise AssertionError


async def test_a_long_computation_gives_way_every_quarter_of_a_millisecond() -> None:
    clock, done = Clock(), asyncio.Event()
    others = asyncio.create_task(turns_of_the_loop(done))
    await Turns(clock).each(range(100), clock.work)
    done.set()

    assert await others >= 48


async def test_a_short_call_of_many_rounds_waits_for_one_turn_and_a_long_one_takes_no_turn_away() -> None:
    clock = Clock()
    worked = 0

    def work(_: int) -> None:
        nonlocal worked
        worked += 1
        clock.work(0)

    async def call(rounds: int) -> int:
        """Have something to do in each round of the loop; how much work was done meanwhile."""
        before = worked
        for _ in range(rounds):
            clock.now += 0.0002
            await asyncio.sleep(0)
        return worked - before

    computing = asyncio.create_task(Turns(clock).each(range(1000), work))
    await asyncio.sleep(0)

    assert await call(10) <= 2
    assert await call(1000) >= 40
    await computing
    assert worked == 1000


def test_a_turn_waits_for_short_calls_to_end_but_not_for_ever() -> None:
    async def compute() -> None:
        loop, clock = asyncio.get_running_loop(), Clock()
        turns = Turns(clock)
        started = loop.time()
        turns.begin_short()
        turns.begin_short()

        await turns.each(range(10), clock.work)  # four turns: the first is of four, the others of two
        assert loop.time() - started == pytest.approx(4 * 0.002)

        computing = asyncio.create_task(turns.each(range(10), clock.work))
        await asyncio.sleep(0.001)
        turns.end_short()
        turns.end_short()
        await computing
        assert loop.time() - started == pytest.approx(4 * 0.002 + 0.001)

    on_virtual_time(compute())


async def test_long_computations_take_turns_one_after_the_other() -> None:
    clock, order = Clock(), list[str]()
    turns = Turns(clock)

    def work(name: str) -> None:
        clock.work(0)
        order.append(name)

    await asyncio.gather(*(turns.each([name] * 6, work) for name in "ab"))

    assert "".join(order) == "aaaabbbbaabb"


@pytest.mark.parametrize("microseconds", [1, 3, 7])
async def test_quick_steps_are_taken_together_and_still_end_with_the_turn(microseconds: int) -> None:
    clock, done, ends = Clock(), asyncio.Event(), list[float]()

    def work(_: int) -> None:
        clock.now += microseconds * 1e-6

    async def look() -> None:
        while not done.is_set():
            ends.append(clock.now)
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    await Turns(clock).each(range(1000), work)
    done.set()
    await looking

    turns = [after - before for before, after in itertools.pairwise(sorted({*ends, clock.now}))]
    assert sum(turns) == pytest.approx(1000e-6 * microseconds)
    assert max(turns) <= 0.0005 + 8 * microseconds * 1e-6
    assert max(turns[1:], default=0.0) <= 0.00025 + 8 * microseconds * 1e-6


async def test_a_slow_step_after_quick_ones_is_followed_by_few_others() -> None:
    clock, taken = Clock(), list[int]()

    def work(number: int) -> None:
        taken.append(number)
        clock.now += 1e-6 if number < 20 else 0.01

    computing = asyncio.create_task(Turns(clock).each(range(100), work))
    await asyncio.sleep(0)

    assert 20 < len(taken) <= 20 + 8
    await computing
    assert taken == list(range(100))


async def test_one_that_fails_or_is_cancelled_gives_up_its_turn() -> None:
    clock = Clock()
    turns = Turns(clock)

    def fail() -> NoReturn:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (it is the one that is raised)
        await turns.once(fail)
    cancelled = asyncio.create_task(turns.each(range(100), clock.work))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait({cancelled})

    async with asyncio.timeout(10):
        assert await turns.once(lambda: 7) == 7


async def test_threads_take_the_gil_sooner_while_a_computation_of_several_turns_is_under_way() -> None:
    clock, usual = Clock(), sys.getswitchinterval()
    turns, seen = Turns(clock), []

    def work(number: int) -> None:
        seen.append(sys.getswitchinterval())
        clock.work(number)

    await turns.each(range(4), work)
    assert (set(seen), sys.getswitchinterval()) == ({usual}, usual)

    seen.clear()
    await asyncio.gather(turns.each(range(100), work), turns.each(range(100), work))
    assert set(seen[:4]) == {usual}  # before anyone knows that it takes several
    assert max(seen[8:]) < usual / 10
    assert sys.getswitchinterval() == usual


async def test_a_cancelled_or_failed_computation_leaves_the_switch_interval_as_it_was() -> None:
    clock, usual = Clock(), sys.getswitchinterval()
    turns = Turns(clock)

    def fail(number: int) -> None:
        clock.work(number)
        if number == 50:
            raise ValueError(number)

    computing = asyncio.create_task(turns.each(range(10_000), clock.work))
    await asyncio.sleep(0)
    assert sys.getswitchinterval() < usual
    computing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await computing
    with pytest.raises(ValueError, match="50"):
        await turns.each(range(100), fail)
    assert sys.getswitchinterval() == usual
