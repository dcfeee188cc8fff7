"""What the batcher alone costs a request, with no RPC and no model.

`just bench-batcher`: callers submit from tasks of their own to an engine that answers at once; the time of a plain
future that the same tasks await is taken off, for the tasks are the caller's cost and not the batcher's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import uvloop

from recommender.batcher import Batcher
from recommender.cost import Cost
from recommender.domain import Query, Ranking

RANKING = Ranking(list(range(10)), [0.0] * 10)


class Instant:
    """An engine that has the answer already."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """The same for everybody."""
        return [RANKING] * len(queries)

    def terminate(self) -> None:
        """Nothing runs."""


async def measure(requests: int, at_once: int, timeout: float) -> float:
    batcher = Batcher(Instant(), max_batch_size=64, max_backlog=1024, engine_timeout=30, cost=Cost(1e-4, 1e-5))
    query = Query(tuple(range(20)), 10)

    async def caller() -> None:
        for _ in range(requests // at_once):
            await batcher.submit(query, deadline=time.monotonic() + timeout)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    seconds = time.perf_counter() - started
    statistics_ = batcher.statistics()
    if statistics_.answered != requests // at_once * at_once:
        raise RuntimeError(f"not everybody was answered: {statistics_}")
    print(f"   rows a batch {statistics_.rows_run / sum(statistics_.batches.values()):.1f}")
    return seconds / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=64_000)
    arguments = parser.parse_args()
    for at_once in (1, 32, 64, 128):
        seconds = [
            asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(arguments.requests, at_once, 5.0))
            for _ in range(arguments.rounds)
        ]
        print(
            at_once,
            f"{statistics.median(seconds) * 1e6:.2f} us/request, {1 / statistics.median(seconds):,.0f} requests/s",
        )


if __name__ == "__main__":
    main()
