"""Counts how often 8-bit scores fail to prove a ranking, on tables of several kinds.

A row that fails is ranked in float32: the answer stays right, its batch takes longer. Tables: uniform, normal, normal
with norms that follow popularity, clustered, and trained: sessions that stay with one of 2,000 topics, popular items
first, teach the table which item comes next. Users: the mean of eight items, as the reference network makes them, drawn
evenly, and for the trained table eight of a session. Run:
`uv run --group dev --group model python -m bench.questions.fallbacks`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from bench.questions.topk import session
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
BATCH = 8  # Coarse scores serve batches below 16 rows only: from 16 on this would count nothing.


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
    """A table that has learned to tell the next click of a session from those of other sessions (sampled softmax)."""
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


def tables(items: int, dim: int) -> dict[str, Embeddings]:
    random = np.random.default_rng(0)
    normal = random.standard_normal((items, dim), dtype=np.float32)
    popularity = (1 + random.pareto(2.0, (items, 1))).astype(np.float32)
    centres = random.standard_normal((200, dim), dtype=np.float32)
    clustered = centres[random.integers(0, 200, items)] + 0.3 * normal
    return {
        "uniform": random.random((items, dim), dtype=np.float32),
        "normal": normal,
        "popular": normal * np.minimum(popularity, 10),
        "clustered": clustered.astype(np.float32),
        "trained": trained(items, dim),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1000000x64")
    options = parser.parse_args()
    items, dim = map(int, options.size.split("x"))
    layout = Layout(items, dim)
    result = Table("table", "k", "rows", "failed", title=f"rows whose coarse scores prove nothing, {options.size}")
    for name, embeddings in tables(items, dim).items():
        table = pack(embeddings, None, layout)
        codes = Codes.of(table, layout)
        model = build_graph(mean, layout, largest=float(np.abs(table).max()), codes=codes)
        with tempfile.TemporaryDirectory() as folder:
            write_model(model, table, Path(folder, "m.onnx"), 1 << 30, {CODES: codes.codes})
            head = session(Path(folder, "m.onnx"), spinning=False, prepack=True)
        draw = sessions(items, HISTORY) if name == "trained" else evenly(items)
        random = np.random.default_rng(1)
        for k in (1, 10, 100):
            failed = 0
            for _ in range(ROWS // BATCH):
                feeds = {
                    "user_history": draw(random, BATCH),
                    "history_length": np.full(BATCH, HISTORY),
                    "k": np.array([k]),
                    "excluded": np.zeros((0, 2), np.int64),
                    "candidates": np.zeros((BATCH, 0), np.int64),
                    "candidates_length": np.zeros(BATCH, np.int64),
                }
                failed += int(head.run(["fallbacks"], feeds)[0].sum())
            result.add_row(name, str(k), str(ROWS), f"{failed} ({failed / ROWS:.1%})")
    Console(width=100).print(result)


if __name__ == "__main__":
    main()
