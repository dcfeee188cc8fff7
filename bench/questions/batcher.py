"""The cost of the batcher alone for a request, with no RPC and no model.

`just bench-batcher`: callers, each a task, submit one query after the other to an engine that answers at once. All
time is counted, that of the callers' own tasks included. Prints the median of the rounds, the least and the most.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import uvloop
from rich.console import Console
from rich.table import Table

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Query, Ranking

RANKING = Ranking(list(range(10)), [0.0] * 10)


class Instant:
    """An engine that has the answer already."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """The same for all variants."""
        return [RANKING] * len(queries)

    def stage(self, _: Sequence[Query]) -> None:
        """Nothing is ready before its turn."""

    def terminate(self) -> None:
        """Nothing runs."""


async def measure(requests: int, at_once: int, timeout: float) -> tuple[float, float]:
    """Seconds a request, and rows a batch."""
    batcher = Batcher(Instant(), max_batch_size=64, max_backlog=1024, engine_timeout=30, cost=Cost(1e-4, 1e-5))
    query = Query(tuple(range(20)), 10)

    async def caller() -> None:
        for _ in range(requests // at_once):
            await batcher.submit(query, deadline=time.monotonic() + timeout)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    seconds = time.perf_counter() - started
    seen = batcher.statistics()
    if seen.answered != requests // at_once * at_once:
        raise RuntimeError(f"not everybody was answered: {seen}")
    return seconds / seen.answered, seen.rows_run / sum(seen.batches.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=64_000)
    arguments = parser.parse_args()
    table = Table("callers at once", "µs a request", "least", "most", "requests/s", "rows a batch")
    for at_once in (1, 32, 64, 128):
        seen = []
        for _ in range(arguments.rounds):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                seen.append(runner.run(measure(arguments.requests, at_once, 5.0)))
        seconds = [each for each, _ in seen]
        micros = [f"{value * 1e6:.2f}" for value in (statistics.median(seconds), min(seconds), max(seconds))]
        rows = statistics.median(rows for _, rows in seen)
        table.add_row(str(at_once), *micros, f"{1 / statistics.median(seconds):,.0f}", f"{rows:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
