"""Measure a model's cost on this machine over batch sizes, history lengths and thread counts.

Runs go the way they go in the server, through the engine and its thread, without gRPC and without
batching: what the engine costs is known before anything else is blamed. From the measurements come the
settings that hold a latency objective at the highest throughput.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from recommender.domain import Query
from recommender.engine.drawing import drawn_query
from recommender.engine.engine import OnnxEngine

_ROUNDS = 5
_LEAST_RUNS = 20
_SEED = 0
_NEARLY = 0.95
"""A setting that reaches this share of the best throughput is as good, and the smaller one is taken."""


@dataclass(frozen=True, slots=True)
class Point:
    """Times of one kind of batch: sorted `seconds` of its runs, with `threads` CPUs each."""

    threads: int
    rows: int
    history: int
    seconds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """The duration in seconds that this share of the runs did not exceed."""
        return self.seconds[min(math.ceil(share * len(self.seconds)), len(self.seconds)) - 1]

    @property
    def throughput(self) -> float:
        """Rows a second while such batches follow each other, by the median run."""
        return self.rows / self.quantile(0.5)


@dataclass(frozen=True, slots=True)
class Advice:
    """The settings that hold an objective, and what they promise; None where nothing measured holds it."""

    point: Point | None
    lines: tuple[str, ...]


async def profile(
    open_engine: Callable[[int], Awaitable[OnnxEngine]],
    *,
    threads: Sequence[int],
    rows: Sequence[int],
    histories: Sequence[int],
    seconds: float,
    done: Callable[[], None],
) -> list[Point]:
    """Measure every combination for about `seconds` each; `done` is called after each of `steps`.

    `open_engine` gives a checked engine with that many threads. The combinations of one engine are measured in turns,
    so that a machine with a drifting speed favours none of them.
    """
    points = []
    for count in threads:
        engine = await open_engine(count)
        try:
            await engine.warm_up(max(rows))
            kinds = _kinds(engine, rows, histories)
            taken: dict[tuple[int, int], list[float]] = {kind: [] for kind, _ in kinds}
            for _ in range(_ROUNDS):
                for kind, queries in kinds:
                    taken[kind] += await _take_turn(engine, queries, seconds / _ROUNDS)
                    done()
        finally:
            engine.close()
        points += [Point(count, *kind, tuple(sorted(runs))) for kind, runs in taken.items()]
    return sorted(points, key=lambda point: (point.threads, point.history, point.rows))


def thread_counts(cpus: int) -> Iterator[int]:
    """1, 2, 4, … and all of them."""
    count = 1
    while count < cpus:
        yield count
        count *= 2
    yield cpus


def steps(threads: Sequence[int], rows: Sequence[int], histories: Sequence[int]) -> int:
    """How often `profile` will call `done`."""
    return len(threads) * len(rows) * len(histories) * _ROUNDS


def advise(points: Sequence[Point], objective: float, history: int) -> Advice:
    """The settings with the highest throughput whose p99 stays within `objective` seconds, at this history.

    A caller that arrives just after a batch has started waits for two, so a batch may take half of the objective. The
    backlog is what can still be answered in time.
    """
    measured = [point for point in points if point.history == history]
    fitting = [point for point in measured if 2 * point.quantile(0.99) <= objective]
    if not fitting:
        least = 2 * min(point.quantile(0.99) for point in measured)
        return Advice(
            None,
            (
                f"# Nothing measured holds a p99 of {in_ms(objective)} ms at histories of {history} items: the",
                f"# quickest batch needs {in_ms(least)} ms, twice its own p99, as a caller may wait for one before.",
                "# Raise the objective, serve a smaller catalogue, or use a faster machine.",
            ),
        )
    best = max(point.throughput for point in fitting)
    chosen = min(
        (point for point in fitting if point.throughput >= _NEARLY * best),
        key=lambda point: (point.threads, point.rows),
    )
    backlog = max(int(chosen.throughput * (objective - chosen.quantile(0.99))), chosen.rows)
    return Advice(
        chosen,
        (
            f"# For a p99 of {in_ms(objective)} ms at histories of {history} items. A batch of {chosen.rows} takes",
            f"# {in_ms(chosen.quantile(0.99))} ms at p99, and a caller that just misses one waits twice that. Up to",
            f"# {chosen.throughput:,.0f} rows a second; gRPC comes on top.",
            f"RECOMMENDER_THREADS={chosen.threads}",
            f"RECOMMENDER_MAX_BATCH_SIZE={chosen.rows}",
            f"RECOMMENDER_MAX_BACKLOG={backlog}",
        ),
    )


def _kinds(
    engine: OnnxEngine, rows: Sequence[int], histories: Sequence[int]
) -> list[tuple[tuple[int, int], list[Query]]]:
    """Batches of every number of rows and length of history, of items drawn from the whole catalogue."""
    draw = random.Random(_SEED)  # noqa: S311 (the same items every time)
    model = engine.model
    items = model.readable or 1

    def query(history: int) -> Query:
        length = min(history, model.longest_history or history)
        return drawn_query(model, tuple(draw.randrange(items) for _ in range(length)), model.default_k, draw)

    return [((count, history), [query(history) for _ in range(count)]) for count, history in product(rows, histories)]


async def _take_turn(engine: OnnxEngine, queries: list[Query], seconds: float) -> list[float]:
    await engine.run(queries)  # brings this kind's memory back into the caches
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < _LEAST_RUNS / _ROUNDS:
        started = time.perf_counter()
        await engine.run(queries)
        taken.append(time.perf_counter() - started)
    return taken


def in_ms(seconds: float) -> str:
    """A duration for people to read, in ms and without the unit: three digits below a second."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"
