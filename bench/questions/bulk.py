"""Speed of a bulk job, Parquet to Parquet, compared with the engine alone and with `BatchRecommend`.

The engine alone runs the job's own packed batches: once with one run at a time on all CPUs, once with a run on each
CPU. The better one counts. The job reads, packs, runs, unpacks and writes. All take turns for some rounds. On a shared
machine CPU a row is a better measure than rows/s. With `--server` (Debian: nghttp2-client; 10,000 items only) calls of
64 rows go through a server too; their CPU is the server's, not the caller's. `just bench-bulk`
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.facts import machine
from bench.load.scenarios import model as exported
from bench.questions import many
from recommender.bulk.batches import PlainBatch
from recommender.bulk.columns import canonical, find_columns
from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import Job, JobOptions
from recommender.bulk.model import BulkModel, open_bulk_model
from recommender.bulk.scoring import Scoring
from recommender.engine.contract import Feed
from recommender.engine.engine import OnnxEngine
from recommender.engine.machine import available_cpus
from recommender.models.artifact import open_artifact
from recommender.models.loader import open_model
from recommender.settings.engine import EngineSettings
from recommender.settings.settings import Settings

LENGTH = 20
K = 10
CALLS = f"BatchRecommend, {many.ROWS} rows a call"


def input_of(path: Path, rows: int, items: int) -> pa.Table:
    """Histories of LENGTH items with their users, in a Parquet file."""
    drawn = np.random.default_rng(1).integers(0, items, rows * LENGTH)
    histories = pa.ListArray.from_arrays(pa.array(np.arange(0, rows * LENGTH + 1, LENGTH), pa.int32()), drawn)
    table = pa.table({"user": np.arange(rows), "item_ids": histories})
    pq.write_table(table, path)
    return table


def feeds_of(model: BulkModel, table: pa.Table) -> list[Feed]:
    """The feeds that a job makes of a table."""
    columns = find_columns(table.column_names, {})
    task = Scoring(model, columns).read(canonical(table, columns))
    batches = [batch for batch in task.batches if isinstance(batch, PlainBatch)]
    assert len(batches) == len(task.batches)
    return [batch.feed for batch in batches]


def alone(engine: OnnxEngine, feeds: Sequence[Feed], threads: int, seconds: float) -> float:
    """Rows a second of an engine that is given packed feeds by so many threads."""
    end = time.perf_counter() + seconds

    def work(place: int) -> int:
        rows = 0
        while time.perf_counter() < end:
            feed = feeds[place % len(feeds)]
            engine.run_feed(feed, K)
            rows += len(feed["history_length"])
            place += threads
        return rows

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        rows = sum(pool.map(work, range(threads)))
    return rows / (time.perf_counter() - started)


def job(model: BulkModel, path: Path, output: Path, part_rows: int) -> float:
    """Rows a second of a whole job; the model is open already."""
    bulk = Job(model, find_inputs(str(path)), JobOptions({}, part_rows=part_rows), longest=600.0)
    return bulk.run(open_folder(str(output)), lambda _: None).rows_per_second


def server_of(parent: psutil.Process) -> psutil.Process:
    """The server that `many.serving` started."""
    (server,) = (child for child in parent.children() if "serve" in child.cmdline())
    return server


def cpu_clock_of(process: psutil.Process) -> Callable[[], float]:
    """A clock of the CPU seconds that a process and those it started have taken."""

    def clock() -> float:
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--part-rows", type=int, default=100_000)
    parser.add_argument("--batch-rows", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of the engine alone, each way")
    parser.add_argument("--server", action="store_true", help="BatchRecommend beside it")
    parser.add_argument("--calls", type=int, default=2000, help="of BatchRecommend a round")
    options = parser.parse_args()
    cpus = available_cpus()
    seen: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        onnx = many.MODEL if (options.items, options.dim) == (10_000, 32) else exported(options.items, options.dim)
        path = folder / "in.parquet"
        table = input_of(path, options.rows, options.items)
        opening = open_bulk_model(Settings(num_recommendations=K), str(onnx), batch_rows=options.batch_rows)
        model = stack.enter_context(closing(asyncio.run(opening)))
        one = open_model(EngineSettings(threads=cpus), open_artifact(onnx))
        each = open_model(EngineSettings(threads=1, engine_slots=cpus), open_artifact(onnx))
        stack.callback(one.close)
        stack.callback(each.close)
        feeds = feeds_of(model, table.slice(0, 20_000))
        ways: dict[str, Callable[[], float]] = {
            f"engine alone, 1 run on {cpus} CPUs": lambda: alone(one, feeds, 1, options.seconds),
            f"engine alone, {cpus} runs on 1 CPU": lambda: alone(each, feeds, cpus, options.seconds),
        }
        clocks: dict[str, Callable[[], float]] = {}
        if options.server:
            port = stack.enter_context(many.serving())
            sent = many.bodies()
            many.check(port, sent)
            body, rows = sent["BatchRecommend"]
            ways[CALLS] = lambda: many.load(port, f"{many.SERVICE}/BatchRecommend", body, rows, options.calls)
            clocks[CALLS] = cpu_clock_of(server_of(psutil.Process()))
        outputs = (folder / f"out-{number}" for number in count())
        ways["job"] = lambda: job(model, path, next(outputs), options.part_rows)
        for _ in range(options.rounds):
            for name, way in ways.items():
                clock = clocks.get(name, time.process_time)
                before = clock(), time.perf_counter()
                rate = way()
                cpu, elapsed = clock() - before[0], time.perf_counter() - before[1]
                seen.setdefault(name, []).append(rate)
                spent.setdefault(name, []).append(cpu / elapsed / rate * 1e6)
        shape = f"{options.items:,} × {options.dim}, {options.rows:,} rows, batches of {model.batch_rows}"
    show(seen, spent, shape)


def show(seen: dict[str, list[float]], spent: dict[str, list[float]], shape: str) -> None:
    console = Console(width=120)
    for fact, value in machine().items():
        console.print(f"{fact}: {value}", highlight=False)
    best = [max(rates) for rates in zip(*(rates for name, rates in seen.items() if "alone" in name), strict=True)]
    names = ("", "rows/s, median", "least", "most", "CPU µs a row", "× better engine alone", "× calls")
    table = Table(*names, title=shape)
    for name, rates in seen.items():
        calls = seen.get(CALLS, [])
        to_calls = f"{statistics.median(a / b for a, b in zip(rates, calls, strict=True)):.2f}" if calls else ""
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            f"{statistics.median(spent[name]):.1f}",
            f"{statistics.median(a / b for a, b in zip(rates, best, strict=True)):.2f}",
            to_calls,
        )
    console.print(table)


if __name__ == "__main__":
    main()
