"""At five times the engine's capacity, goodput stays at capacity and admitted callers are answered in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Query, Ranking
from recommender.errors import BacklogFullError, DeadlineError
from tests.support.fakes import answer, make_batcher, query, with_time

pytestmark = with_time

COST = Cost(0.010, 0.001)
ROWS = 16
FULL_RUN = COST.seconds(ROWS, 0)
CAPACITY = ROWS / FULL_RUN
SECONDS = 4.0


class Timed:
    """An engine that takes what its runs cost, on the loop's virtual clock."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        await asyncio.sleep(COST.seconds(len(queries), 0))
        return [answer(each) for each in queries]

    def stage(self, _: Sequence[Query]) -> None:
        """Nothing is ready before its turn."""

    def terminate(self) -> None:
        """Nothing hangs."""


@dataclass(repr=False)
class Seen:
    """How the callers of an overload fared; times are seconds."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    late: int = 0


async def overload(batcher: Batcher, rate: float, timeout: float) -> Seen:
    """Callers at a constant rate, each with a deadline, for SECONDS."""
    loop = asyncio.get_running_loop()
    seen = Seen()

    async def call(number: int) -> None:
        came = loop.time()
        try:
            assert await batcher.submit(query(number), deadline=came + timeout) == answer(query(number))
        except (BacklogFullError, DeadlineError):
            took = loop.time() - came
            if took:
                seen.late += 1
            else:
                seen.refused.append(took)
        else:
            seen.answered.append(loop.time() - came)

    callers = []
    started = loop.time()
    for number in range(round(rate * SECONDS)):
        await asyncio.sleep(max(started + number / rate - loop.time(), 0.0))
        callers.append(asyncio.create_task(call(number)))
    await asyncio.gather(*callers)
    return seen


@pytest.mark.parametrize("max_wait", [0.0, 0.002])
@pytest.mark.parametrize("times", [1.2, 5.0, 20.0])
async def test_goodput_stays_at_capacity_and_latency_bounded(times: float, max_wait: float) -> None:
    backlog = 4 * ROWS
    batcher = make_batcher(Timed(), max_batch_size=ROWS, max_backlog=backlog, cost=COST, max_wait=max_wait)

    seen = await overload(batcher, times * CAPACITY, timeout=10.0)

    assert len(seen.answered) >= 0.9 * CAPACITY * SECONDS
    # Its own run, those of the full backlog before it, and the one under way.
    assert max(seen.answered) <= (backlog / ROWS + 2) * FULL_RUN
    assert seen.late == 0
    await batcher.close()


@pytest.mark.parametrize("times", [1.2, 5.0, 20.0])
async def test_with_deadlines_shorter_than_the_backlog_goodput_stays_and_hardly_anybody_waits_in_vain(
    times: float,
) -> None:
    batcher = make_batcher(Timed(), max_batch_size=ROWS, max_backlog=1000, cost=COST)

    seen = await overload(batcher, times * CAPACITY, timeout=4 * FULL_RUN)

    assert len(seen.answered) >= 0.9 * CAPACITY * SECONDS
    assert max(seen.answered) <= 4 * FULL_RUN
    assert seen.late <= 0.01 * len(seen.answered)
    await batcher.close()
