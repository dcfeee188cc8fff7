"""Long computations on the event loop: they take turns, and others get theirs."""

from __future__ import annotations

import asyncio
import itertools
from typing import NoReturn

import pytest

from recommender.threads import Turns


class Clock:
    """Time that passes only by work."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, _: int) -> None:
        self.now += 0.0005


async def turns_of_the_loop(until: asyncio.Event) -> int:
    for count in itertools.count():
        if until.is_set():
            return count
        await asyncio.sleep(0)
    raise AssertionError


async def test_a_long_computation_gives_way_every_millisecond() -> None:
    clock, done = Clock(), asyncio.Event()
    others = asyncio.create_task(turns_of_the_loop(done))
    await Turns(clock).each(range(100), clock.work)
    done.set()

    assert await others >= 49


async def test_long_computations_take_turns_one_after_the_other() -> None:
    clock, order = Clock(), list[str]()
    turns = Turns(clock)

    def work(name: str) -> None:
        clock.work(0)
        order.append(name)

    await asyncio.gather(*(turns.each([name] * 4, work) for name in "ab"))

    assert "".join(order) == "aabbaabb"


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
