"""Measures how often the item table stands in memory, with and without ONNX Runtime's packing.

Each case is a process of its own, which loads the model and runs a batch of one; its resident memory is compared with
what it holds before it loads. Run: `uv run --group dev --group model python -m bench.questions.copies`.
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


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(path: Path, *, prepack: bool) -> int:
    before = resident()
    model = session(path, spinning=False, prepack=prepack)
    feeds = {
        "user_history": np.array([[1]]),
        "history_length": np.array([1]),
        "k": np.array([10]),
        "excluded": np.zeros((0, 2), np.int64),
        "candidates": np.zeros((1, 0), np.int64),
        "candidates_length": np.array([0]),
    }
    wanted = {given.name for given in model.get_inputs()}
    model.run(["scores"], {name: value for name, value in feeds.items() if name in wanted})
    return resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1000000x64")
    parser.add_argument("--load", type=Path, help="internal: load this file and print the bytes it took")
    parser.add_argument("--prepack", type=int, default=1)
    options = parser.parse_args()
    if options.load is not None:
        print(load(options.load, prepack=bool(options.prepack)))
        return
    items, dim = map(int, options.size.split("x"))
    embeddings = np.random.default_rng(0).random((items, dim), dtype=np.float32)
    result = Table(
        "model", "packed", "MiB in memory", "x table", title=f"{options.size}: {embeddings.nbytes >> 20} MiB"
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "head": ours(embeddings, Path(folder)),
            "coarse head": ours(embeddings, Path(folder), coarse=True),
            "plain": plain(embeddings, Path(folder), select=True),
        }
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
                taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                share = f"{taken / embeddings.nbytes:.2f}"
                result.add_row(name, "yes" if prepack else "no", str(taken >> 20), share)
    Console(width=100).print(result)


if __name__ == "__main__":
    main()
