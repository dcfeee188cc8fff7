"""One timer for all deadlines: it is never late, and continues with the next deadline."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import copy_context

import pytest

from recommender.batching.timer import DeadlineTimer
from tests.support.fakes import VirtualLoop


@pytest.fixture
def fired() -> list[float]:
    return []


@pytest.fixture
def deadlines() -> list[float]:
    """The deadlines that the timer's owner knows, earliest last."""
    return []


@pytest.fixture
def errors() -> list[Exception]:
    return []


Make = Callable[[Callable[[float], None]], DeadlineTimer]


@pytest.fixture
def make(loop: VirtualLoop, deadlines: list[float], errors: list[Exception]) -> Make:
    async def made(expire: Callable[[float], None]) -> DeadlineTimer:
        return DeadlineTimer(
            expire=expire,
            next_deadline=lambda: deadlines.pop() if deadlines else math.inf,
            failed=errors.append,
            clock=loop.time,
            context=copy_context(),
        )

    return lambda expire: loop.run_until_complete(made(expire))


def test_an_earlier_deadline_takes_the_place_of_a_later_one(loop: VirtualLoop, make: Make, fired: list[float]) -> None:
    timer, now = make(fired.append), loop.time()
    timer.watch(now + 2.0, now)
    timer.watch(now + 1.0, now)
    assert timer.at == now + 1.0
    loop.advance(5.0)

    assert fired == pytest.approx([now + 1.0])
    assert timer.at == math.inf


def test_a_deadline_that_has_passed_fires_in_a_turn_of_its_own(
    loop: VirtualLoop, make: Make, fired: list[float]
) -> None:
    timer, now = make(fired.append), loop.time()
    timer.watch(now - 1.0, now)
    assert fired == []
    loop.settle()

    assert fired == pytest.approx([now])


def test_it_goes_on_with_the_next_deadline(
    loop: VirtualLoop, make: Make, fired: list[float], deadlines: list[float]
) -> None:
    timer, now = make(fired.append), loop.time()
    deadlines[:] = [now + 3.0, now + 2.0]
    timer.watch(now + 1.0, now)
    loop.advance(5.0)

    assert fired == pytest.approx([now + 1.0, now + 2.0, now + 3.0])


def test_a_deadline_watched_meanwhile_is_kept_if_it_comes_first(
    loop: VirtualLoop, make: Make, fired: list[float], deadlines: list[float]
) -> None:
    def expire(now: float) -> None:
        fired.append(now)
        if len(fired) == 1:
            timer.watch(now + 0.5, now)

    timer, now = make(expire), loop.time()
    deadlines.append(now + 3.0)
    timer.watch(now + 1.0, now)
    loop.advance(1.7)

    assert fired == pytest.approx([now + 1.0, now + 1.5])


def test_a_cancelled_timer_never_fires(loop: VirtualLoop, make: Make, fired: list[float]) -> None:
    timer, now = make(fired.append), loop.time()
    timer.watch(now + 1.0, now)
    timer.cancel()
    loop.advance(5.0)

    assert (fired, timer.at) == ([], math.inf)


def test_an_error_is_told_and_ends_it(loop: VirtualLoop, make: Make, errors: list[Exception]) -> None:
    bug = ArithmeticError("a bug")

    def expire(_: float) -> None:
        raise bug

    timer, now = make(expire), loop.time()
    timer.watch(now + 1.0, now)
    loop.advance(5.0)

    assert errors == [bug]
    assert timer.at == math.inf
