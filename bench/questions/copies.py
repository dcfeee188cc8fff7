"""Measure how many copies of the item table are in memory, with and without ONNX Runtime's packing.

Each case is a separate process, which loads the model and runs batches. Its resident memory is compared with that
before the load. ONNX Runtime's own code is included; a tiny model shows how much that is. `just bench copies`
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.questions.topk import ours, plain, session

ROWS = (1, 64)
RUNS = 5
TINY = (70_000, 8)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(path: Path, *, prepack: bool) -> list[int]:
    """Bytes that the process grew by after runs of each number of rows."""
    before, grown = resident(), []
    model = session(path, spinning=False, prepack=prepack)
    wanted = {given.name for given in model.get_inputs()}
    for rows in ROWS:
        feeds = {
            "user_history": np.arange(rows)[:, None],
            "history_length": np.ones(rows, np.int64),
            "k": np.array([10]),
            "excluded": np.zeros((0, 2), np.int64),
            "candidates": np.zeros((rows, 0), np.int64),
            "candidates_length": np.zeros(rows, np.int64),
        }
        for _ in range(RUNS):
            model.run(["scores"], {name: value for name, value in feeds.items() if name in wanted})
        grown.append(resident() - before)
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1000000x64")
    parser.add_argument("--load", type=Path, help="internal: load this file and print the bytes it took")
    parser.add_argument("--prepack", type=int, default=1)
    options = parser.parse_args()
    if options.load is not None:
        print(*load(options.load, prepack=bool(options.prepack)))
        return
    items, dim = map(int, options.size.split("x"))
    embeddings = np.random.default_rng(0).random((items, dim), dtype=np.float32)
    result = Table(
        "model",
        "packed",
        *(heading for rows in ROWS for heading in (f"MiB after batches of {rows}", "x table")),
        title=f"{options.size}: {embeddings.nbytes >> 20} MiB",
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "head": ours(embeddings, Path(folder)),
            "coarse head": ours(embeddings, Path(folder), coarse=True),
            "plain": plain(embeddings, Path(folder), select=True),
        }
        Path(folder, "tiny").mkdir()
        tiny = np.random.default_rng(0).random(TINY, dtype=np.float32)
        files["tiny, coarse"] = ours(tiny, Path(folder, "tiny"), coarse=True)
        for name, path in files.items():
            for prepack in (1, 0):
                command = [
                    sys.executable,
                    "-m",
                    "bench.questions.copies",
                    "--load",
                    str(path),
                    "--prepack",
                    str(prepack),
                ]
                grown = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
                cells = (cell for taken in grown for cell in (str(taken >> 20), f"{taken / embeddings.nbytes:.2f}"))
                result.add_row(name, "yes" if prepack else "no", *cells)
    Console(width=100).print(result)


if __name__ == "__main__":
    main()
