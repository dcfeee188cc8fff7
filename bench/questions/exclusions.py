"""Measure whether a long exclusion list slows other rows of its batch.

A batch is one run, so its rows wait for each other. Exclusions should cost no more than their own length. Interleaved.
`just bench exclusions`
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from bench.questions.topk import ours, session

K = 10


def excluding(lengths: list[int], items: int, random: np.random.Generator) -> np.ndarray:
    """Pairs (row, item) of rows that exclude this many different items each."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    chosen = [random.permutation(items)[:length] for length in lengths if length]
    return np.stack([rows, np.concatenate([*chosen, np.empty(0, np.int64)]).astype(np.int64)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000000x64,10000x32")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    shown = Table("items", "batch", "who excludes", "median ms", "5 % … 95 %", "x nobody", title="exclusions")
    for size in options.sizes.split(","):
        items, dim = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            path = ours(random.random((items, dim), dtype=np.float32), Path(folder))
            # What the engine keeps: one session for all runs, for a small model one more that restricts nothing.
            whole, quick = (session(path, spinning=False, prepack=True, restricted=known) for known in (True, False))
            for batch in map(int, options.batches.split(",")):
                measure(shown, size, items, batch, whole, quick, options.rounds * (1 if items >= 100_000 else 40))
    Console(width=110).print(shown)


def measure(
    shown: Table,
    size: str,
    items: int,
    batch: int,
    whole: ort.InferenceSession,
    quick: ort.InferenceSession,
    rounds: int,
) -> None:
    """Add a row to the table for each kind of batch."""
    random = np.random.default_rng(1)
    kinds = {
        "nobody": [0] * batch,
        "one row, 100 items": [100] + [0] * (batch - 1),
        "one row, 5,000 items": [5_000] + [0] * (batch - 1),
        "every row, 100 items": [100] * batch,
    }
    users = random.integers(0, 1_024, (batch, 1))
    feeds = {
        who: {
            "user_history": users,
            "history_length": np.ones(batch, np.int64),
            "k": np.array([K]),
            "excluded": excluding(lengths, items, random),
            "candidates": np.zeros((batch, 0), np.int64),
            "candidates_length": np.zeros(batch, np.int64),
        }
        for who, lengths in kinds.items()
    }
    times: dict[str, list[float]] = {who: [] for who in kinds}
    for turn in range(rounds + 2):
        for who, feed in feeds.items():
            start = time.perf_counter()
            (quick if who == "nobody" else whole).run(["recommendations", "scores"], feed)
            if turn >= 2:
                times[who].append(1e3 * (time.perf_counter() - start))
    for who, taken in times.items():
        low, middle, high = np.percentile(taken, (5, 50, 95))
        ratio = f"{middle / np.median(times['nobody']):.2f}"
        shown.add_row(size, str(batch), who, f"{middle:.2f}", f"{low:.2f} … {high:.2f}", ratio)
    shown.add_section()


if __name__ == "__main__":
    main()
