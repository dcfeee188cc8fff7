"""What a model costs on this machine, measured over batch sizes, history lengths and thread counts.

Runs go the way they go in the server, through the engine and its thread, without gRPC and without
batching: what the engine costs is known before anything else is blamed. From the measurements come the
settings that hold a latency objective at the highest throughput.
"""

from __future__ import annotations

import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product

from recommender.cli.chart import Series, line_chart
from recommender.domain import Query
from recommender.engine.engine import OnnxEngine
from recommender.engine.machine import available_cpus

COLUMNS = ("threads", "history", "batch", "runs", "p50 ms", "p99 ms", "µs a row", "rows a second")
_ROUNDS = 5
_LEAST_RUNS = 20
_SEED = 0
_NEARLY = 0.95
"""A setting that reaches this share of the best throughput is as good, and the smaller one is taken."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 72rem; color: #222;
  background: #fff }}
section {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }}
table {{ border-collapse: collapse; margin-top: 1rem }} td, th {{ padding: .2rem .8rem; text-align: right }}
tr:nth-child(even) {{ background: #f4f4f4 }} pre {{ background: #f4f4f4; padding: 1rem }}
</style>
<h1>{title}</h1>
<p>{machine}. Runs of the engine alone, on its own thread: gRPC and the wait for a batch come on top.</p>
{sections}
<h2>Recommended settings</h2>
<pre>{advice}</pre>
<h2>Measurements</h2>
<table>
{rows}
</table>
</html>
"""


@dataclass(frozen=True, slots=True)
class Point:
    """What one kind of batch took: `seconds` of every run, sorted, with `threads` CPUs each."""

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
    open_engine: Callable[[int], OnnxEngine],
    *,
    threads: Sequence[int],
    rows: Sequence[int],
    histories: Sequence[int],
    seconds: float,
    done: Callable[[], None],
) -> list[Point]:
    """Measure every combination for about `seconds` each; `done` is called after each of `steps`.

    `open_engine` gives a loaded engine that runs on so many threads. The combinations of one engine are
    measured in turns, so that a machine whose speed drifts favours none of them.
    """
    points = []
    for count in threads:
        engine = open_engine(count)
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

    Whoever comes just after a batch has started waits for its end and then for the own one, so a batch
    may take half of the objective. The backlog is what can still be answered in time.
    """
    measured = [point for point in points if point.history == history]
    fitting = [point for point in measured if 2 * point.quantile(0.99) <= objective]
    if not fitting:
        least = 2 * min(point.quantile(0.99) for point in measured)
        return Advice(
            None,
            (
                f"# Nothing measured holds a p99 of {_ms(objective)} ms at histories of {history} items: the quickest",
                f"# batch needs {_ms(least)} ms, twice its own p99, as a caller may have to wait for one before.",
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
            f"# For a p99 of {_ms(objective)} ms at histories of {history} items. A batch of {chosen.rows} takes",
            f"# {_ms(chosen.quantile(0.99))} ms at p99, and a caller who just misses one waits twice that. Up to",
            f"# {chosen.throughput:,.0f} rows a second; gRPC comes on top.",
            f"RECOMMENDER_THREADS={chosen.threads}",
            f"RECOMMENDER_MAX_BATCH_SIZE={chosen.rows}",
            f"RECOMMENDER_MAX_BACKLOG={backlog}",
        ),
    )


def page(title: str, points: Sequence[Point], advice: Advice, objective: float) -> str:
    """The measurements as one HTML page that needs nothing from elsewhere."""
    sections = []
    for history in sorted({point.history for point in points}):
        latency, throughput = [], []
        for count in sorted({point.threads for point in points}):
            line = sorted(
                (point for point in points if (point.threads, point.history) == (count, history)),
                key=lambda point: point.rows,
            )
            name = f"{count} thread{'s' if count > 1 else ''}"
            latency.append(Series(f"p50, {name}", [(point.rows, point.quantile(0.5) * 1e3) for point in line]))
            latency.append(
                Series(f"p99, {name}", [(point.rows, point.quantile(0.99) * 1e3) for point in line], dashed=True)
            )
            throughput.append(Series(name, [(point.rows, point.throughput) for point in line]))
        items = f"histories of {history} item{'s' if history > 1 else ''}"
        sections += [
            "<section>",
            line_chart(
                f"A run in ms, {items}", "batch size", latency, limit=("half of the objective", objective * 500)
            ),
            line_chart(f"Rows a second, {items}", "batch size", throughput),
            "</section>",
        ]
    head = "".join(f"<th>{name}" for name in COLUMNS)
    rows = ["".join(f"<td>{cell}" for cell in cells(point)) for point in points]
    return _PAGE.format(
        title=f"What {escape(title)} costs",
        machine=escape(f"{available_cpus()} CPUs ({platform.machine()}, {platform.system()})"),
        sections="\n".join(sections),
        advice=escape("\n".join(advice.lines)),
        rows="\n".join(f"<tr>{row}</tr>" for row in (head, *rows)),
    )


def cells(point: Point) -> tuple[str, ...]:
    """A measurement as the table shows it, in the order of COLUMNS."""
    half = point.quantile(0.5)
    return (
        str(point.threads),
        str(point.history),
        str(point.rows),
        str(len(point.seconds)),
        _ms(half),
        _ms(point.quantile(0.99)),
        f"{half / point.rows * 1e6:,.1f}",
        f"{point.throughput:,.0f}",
    )


def _kinds(
    engine: OnnxEngine, rows: Sequence[int], histories: Sequence[int]
) -> list[tuple[tuple[int, int], list[Query]]]:
    """Batches of every number of rows and length of history, of items drawn from the whole catalogue."""
    draw = random.Random(_SEED)  # noqa: S311 (the same items every time)
    model = engine.model
    items = model.items or 1

    def query(history: int) -> Query:
        length = min(history, model.longest_history or history)
        return Query(tuple(draw.randrange(items) for _ in range(length)), model.default_k)

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


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"
