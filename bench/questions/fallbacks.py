"""Counts how often 8-bit scores fail to prove a ranking, and rankings that differ from float32's, on several tables.

A row that fails is ranked in float32: the answer stays right, its batch takes longer. Tables: uniform, normal, normal
with norms that follow popularity, the same with a far longer tail, or with one item 1,000 times as long, clustered,
and trained: sessions that stay with one of 2,000 topics, popular items first, teach the table which item comes next.
Users: the mean of eight items, as the reference network makes them, drawn evenly, and for the trained table eight of a
session. Each batch is ranked from 8 bits and in float32; where items differ whose scores differ by more than rounding,
the exit code is 1. The CPU time tells where 8 bits pay. Run:
`uv run --group dev --group model python -m bench.questions.fallbacks`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from bench.questions.topk import session
from recommender.engine.coarse import COARSE_ROWS, EVERY_BATCH, NO_BATCH
from recommender.export.artifact import write_model
from recommender.export.graph import build_graph
from recommender.export.head.codes import CODES, Codes
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack

Embeddings: TypeAlias = npt.NDArray[np.float32]
Draw: TypeAlias = Callable[[np.random.Generator, int], npt.NDArray[np.int64]]
"""So many histories."""

HISTORY = 8
TOPICS, AT_HOME = 2_000, 0.9
STEPS, SESSIONS, TEMPERATURE, RATE = 3_000, 1_024, 0.2, 0.01
ROWS = 512
BATCH = 64


def mean(g: Nodes) -> str:
    return g.op("ReduceMean", g.op("Gather", TABLE, "user_history", axis=0), g.int64(1), keepdims=0)


def sessions(items: int, length: int) -> Draw:
    """Sessions of one topic each, nine clicks of ten in it, on popular items first."""
    each = items // TOPICS

    def draw(random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        topic = random.integers(0, TOPICS, (count, 1))
        strayed = random.random((count, length)) >= AT_HOME
        topic = np.where(strayed, random.integers(0, TOPICS, (count, length)), topic)
        place = (each * random.random((count, length)) ** 3).astype(np.int64)
        return topic * each + place

    return draw


def evenly(items: int) -> Draw:
    """Histories of any items."""
    return lambda random, count: random.integers(0, items, (count, HISTORY))


def trained(items: int, dim: int) -> Embeddings:
    """A table that is trained to predict the next click of a session (sampled softmax)."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(items, dim, sparse=True)
    torch.nn.init.normal_(table.weight, std=0.1)
    adam = torch.optim.SparseAdam(list(table.parameters()), lr=RATE)
    draw, random = sessions(items, HISTORY + 1), np.random.default_rng(2)
    for _ in range(STEPS):
        clicks = torch.from_numpy(draw(random, SESSIONS))
        scores = table(clicks[:, :-1]).mean(1) @ table(clicks[:, -1]).T / TEMPERATURE
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(SESSIONS))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        adam.step()  # type: ignore[no-untyped-call]
    return table.weight.detach().numpy()


def normal(items: int, dim: int) -> Embeddings:
    return np.random.default_rng(0).standard_normal((items, dim), dtype=np.float32)


def uniform(items: int, dim: int) -> Embeddings:
    return np.random.default_rng(0).random((items, dim), dtype=np.float32)


def popular(items: int, dim: int) -> Embeddings:
    norms = 1 + np.random.default_rng(3).pareto(2.0, (items, 1))
    return (normal(items, dim) * np.minimum(norms, 10)).astype(np.float32)


def long_tailed(items: int, dim: int) -> Embeddings:
    """One item of a thousand is 100 times as long as the median."""
    norms = np.random.default_rng(3).lognormal(0, 1.5, (items, 1))
    return (normal(items, dim) * norms).astype(np.float32)


def giant(items: int, dim: int) -> Embeddings:
    table = normal(items, dim)
    table[items // 2] *= 1_000
    return table


def clustered(items: int, dim: int) -> Embeddings:
    random = np.random.default_rng(4)
    centres = random.standard_normal((200, dim), dtype=np.float32)
    return (centres[random.integers(0, 200, items)] + np.float32(0.3) * normal(items, dim)).astype(np.float32)


TABLES = {
    "uniform": uniform,
    "normal": normal,
    "popular": popular,
    "long-tailed": long_tailed,
    "giant": giant,
    "clustered": clustered,
    "trained": trained,
}


@dataclass(slots=True)
class Counts:
    """Counts of rows on one table."""

    rows: int = 0
    failed: int = 0
    swapped: int = 0  # items of equal scores, but for rounding, change places
    wrong: int = 0
    from_8_bits: list[float] = field(default_factory=list)  # CPU seconds of each batch
    from_float32: list[float] = field(default_factory=list)


def count(embeddings: Embeddings, draw: Draw, k: int, rows: int, batch: int) -> Counts:
    """Rank for so many rows in both ways."""
    table = pack(embeddings, None, layout := Layout(*embeddings.shape))
    codes = Codes.of(table, layout)
    model = build_graph(mean, layout, largest=float(np.abs(table).max()), codes=codes)
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, table, Path(folder, "m.onnx"), 1 << 30, {CODES: codes.codes})
        head = session(Path(folder, "m.onnx"), spinning=False, prepack=True)
    random, counts = np.random.default_rng(1), Counts()
    largest = float(np.linalg.norm(embeddings, axis=1).max())
    while counts.rows < rows:
        size = min(batch, rows - counts.rows)
        histories = draw(random, size)
        feeds = {
            "user_history": histories,
            "history_length": np.full(size, HISTORY),
            "k": np.array([k]),
            "excluded": np.zeros((0, 2), np.int64),
            "candidates": np.zeros((size, 0), np.int64),
            "candidates_length": np.zeros(size, np.int64),
        }
        wanted = ["recommendations", "scores", "fallbacks"]
        answers = []
        for span, taken in ((EVERY_BATCH, counts.from_8_bits), (NO_BATCH, counts.from_float32)):
            started = time.process_time()
            answers.append(head.run(wanted, feeds | {COARSE_ROWS: span}))
            taken.append(time.process_time() - started)
        (ids, scores, failed), (right_ids, right, _) = answers
        norms = np.linalg.norm(embeddings[histories].mean(axis=1), axis=1, keepdims=True)
        # The largest difference of float32, for any order of the sum.
        apart = np.abs(scores - right) > np.finfo(np.float32).eps * embeddings.shape[1] * norms * largest
        counts.rows += size
        counts.failed += int(failed.sum())
        counts.wrong += int(apart.any(axis=1).sum())
        counts.swapped += int((ids != right_ids).any(axis=1).sum())
    return counts


def milliseconds(counts: Counts) -> tuple[str, str]:
    """The median CPU time of a batch, from 8 bits and in float32."""
    return (f"{1e3 * np.median(counts.from_8_bits):.1f}", f"{1e3 * np.median(counts.from_float32):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1000000x64")
    parser.add_argument("--rows", type=int, default=ROWS, help="for each table and k")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--k", default="1,10,100")
    parser.add_argument("--tables", default="uniform,normal,popular,clustered,trained", help=f"of {', '.join(TABLES)}")
    options = parser.parse_args()
    items, dim = map(int, options.size.split("x"))
    columns = ("table", "k", "rows", "ranked in float32", "equal scores in another order", "wrong", "CPU ms", "float32")
    result, wrong = Table(*columns, title=f"rankings from 8 bits, {options.size}"), 0
    for name in options.tables.split(","):
        embeddings = TABLES[name](items, dim)
        draw = sessions(items, HISTORY) if name == "trained" else evenly(items)
        for k in map(int, options.k.split(",")):
            seen = count(embeddings, draw, k, options.rows, options.batch)
            wrong += seen.wrong
            share = f"{seen.failed} ({seen.failed / seen.rows:.1%})"
            result.add_row(name, str(k), str(seen.rows), share, str(seen.swapped), str(seen.wrong), *milliseconds(seen))
    Console(width=120).print(result)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
