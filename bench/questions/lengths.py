"""Engine time saved by separate batches for histories of similar length.

`just bench lengths`: histories of lengths as ETUDE fitted them to real sessions (`powerlaw(a=0.07, loc=2, scale=277)`)
are run oldest first, as the batcher does, and sorted by length among `--window` batches' worth, which is the most that
any sorting could save. Interleaved rounds; the share is sorted time ÷ time oldest first. Sorting makes a caller wait
for others of its length, so it would have to save much.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recommender.domain import Query
from recommender.engine.engine import OnnxEngine
from recommender.models.artifact import open_artifact
from recommender.models.loader import open_model
from recommender.settings.engine import EngineSettings

NETWORKS = ("reference", "sasrec", "gru4rec")


def histories(count: int, items: int, longest: int, seed: int = 1) -> list[Query]:
    """Sessions whose lengths follow the power law, truncated to the longest that the network reads."""
    chance = random.Random(seed)
    lengths = [min(int(2 + 277 * chance.random() ** (1 / 0.07)), longest) for _ in range(count)]
    return [Query(tuple(chance.randrange(items) for _ in range(length)), 10) for length in lengths]


async def seconds(engine: OnnxEngine, queries: Sequence[Query], rows: int) -> float:
    """How long the engine takes for all of them, `rows` at a time."""
    started = time.perf_counter()
    for start in range(0, len(queries), rows):
        await engine.run(queries[start : start + rows])
    return time.perf_counter() - started


def cells(queries: Sequence[Query], rows: int) -> int:
    """Cells of all batches, padding included."""
    batches = (queries[start : start + rows] for start in range(0, len(queries), rows))
    return sum(len(batch) * max(len(query.history) for query in batch) for batch in batches)


def exported(folder: Path, network: str, items: int, dim: int) -> Path:
    """A model file of random weights."""
    path = folder / f"{network}-{items}" / "10_model.onnx"
    path.parent.mkdir()
    command = [sys.executable, "-m", "recommender", "export", "--network", network, "--items", str(items),
               "--dim", str(dim), "--output", str(path)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return path


async def compare(path: Path, arguments: argparse.Namespace, table: Table, name: str) -> None:
    engine = open_model(EngineSettings(device="cpu"), open_artifact(path))
    items, longest = engine.model.items or 1, engine.model.longest_history or 10_000
    came = histories(arguments.window * arguments.rows, items, longest)
    sorted_ = sorted(came, key=lambda query: len(query.history))
    await engine.warm_up(arguments.rows)
    shares, times = [], []
    for round_ in range(arguments.rounds):
        both = {}
        for kind, queries in (
            (("came", came), ("sorted", sorted_)) if round_ % 2 else (("sorted", sorted_), ("came", came))
        ):
            both[kind] = await seconds(engine, queries, arguments.rows)
        shares.append(both["sorted"] / both["came"])
        times.append(both["came"] / len(came) * 1e6)
    padded = cells(came, arguments.rows) / cells(sorted_, arguments.rows)
    table.add_row(
        name,
        f"{statistics.median(times):.0f}",
        f"{padded:.1f}",
        f"{statistics.median(shares):.2f} [{min(shares):.2f} … {max(shares):.2f}]",
    )
    engine.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--window", type=int, default=16)
    arguments = parser.parse_args()
    table = Table(
        "network, catalogue", "µs a row as they come", "cells ÷ cells sorted", "time sorted ÷ time as they come"
    )
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            for items, dim in ((10_000, 32), (100_000, 64)):
                path = exported(Path(folder), network, items, dim)
                await compare(path, arguments, table, f"{network}, {items:,} × {dim}")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
