"""Cost of waking the engine's thread and the event loop, in time and in CPU.

A batch takes two: the loop puts its run into the thread's queue (a futex), and the thread calls the loop back (a byte
in the loop's own pipe). Both sides sleep meanwhile, as for a caller by itself. `just bench wakeups`
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import uvloop
from rich.console import Console
from rich.table import Table

from bench.figures import spread
from recommender.threads import Threads

ROUNDS, TURNS = 21, 500
PAUSE = 0.0005
"""Seconds after which both sides sleep."""


async def figures(turn: Callable[[], Awaitable[float]]) -> tuple[list[float], list[float]]:
    """Of each round: what a turn gives, on average, and its CPU beyond the pauses; both in µs."""
    taken: list[float] = []
    cpu: list[float] = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TURNS):
            await asyncio.sleep(PAUSE)
        paused = time.process_time() - began
        total, began = 0.0, time.process_time()
        for _ in range(TURNS):
            await asyncio.sleep(PAUSE)
            total += await turn()
        taken.append(total / TURNS * 1e6)
        cpu.append((time.process_time() - began - paused) / TURNS * 1e6)
    return taken, cpu


async def main() -> None:
    """Show both ways, and the round trip."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    threads = Threads(1)

    async def there() -> float:
        began = time.perf_counter()
        return await threads.call(lambda _: time.perf_counter()) - began

    async def back() -> float:
        ended = await threads.call(lambda _: time.perf_counter())
        return time.perf_counter() - ended

    async def both() -> float:
        began = time.perf_counter()
        await threads.call(lambda _: None)
        return time.perf_counter() - began

    table = Table("wake-up", "µs until it runs", "µs CPU of the round trip")
    ways = {"the engine's thread, by its queue": there, "the event loop, by its pipe": back, "both": both}
    for name, way in ways.items():
        taken, cpu = await figures(way)
        table.add_row(name, spread(taken), spread(cpu))
    Console(width=120).print(table)
    threads.close()


if __name__ == "__main__":
    uvloop.run(main())
