"""Measures top-K on a machine that has NumPy and ONNX Runtime and nothing else: `python -m bench.questions.elsewhere`.

`bench.questions.skeletons` writes a folder of models without their large tables, a few hundred kilobytes. Here the
tables are made again from the same seed, and the models run in turn, never side by side. Every ranking is compared with
the first model's. With `--device cuda` they run on the GPU; a table in 8 bits is not used there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Feeds = dict[str, npt.NDArray[np.int64]]


def tables(folder: Path, wanted: dict[str, str]) -> None:
    """Write the files that the models read, by what each holds."""
    for name, kind in wanted.items():
        size = name.split(".")[0].split("-")[-1]
        items, dim = map(int, size.split("x"))
        embeddings = np.random.default_rng(0).random((items, dim), dtype=np.float32)
        told = np.load(folder / f"codes-{size}.npz")
        rows = int(told[kind]) if kind != "across" else items
        if kind in {"table", "across"}:
            whole = np.zeros((rows, dim), np.float32)
            whole[:items] = embeddings
            made = whole if kind == "table" else whole.T
        else:
            coded = np.rint((embeddings.astype(np.float64) - told["middle"]) / told["step"]).clip(-127, 127)
            if kind == "codes":
                made = np.full((rows, dim), 128, np.uint8)
                made[:items] = coded + 128
            else:
                made = np.zeros((dim, rows), np.int8)
                made[:, :items] = coded.T
        np.ascontiguousarray(made).tofile(folder / name)


def session(path: Path, *, device: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")  # as the engine does
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ort.InferenceSession(path, options, providers=providers if device == "cuda" else providers[1:])


def feeds(opened: ort.InferenceSession, users: npt.NDArray[np.int64], k: int, *, on_gpu: bool) -> Feeds:
    batch = len(users)
    given = {
        "user_history": users[:, None],
        "history_length": np.ones(batch, np.int64),
        "k": np.array([k]),
        "excluded": np.zeros((0, 2), np.int64),
        "candidates": np.zeros((batch, 0), np.int64),
        "candidates_length": np.zeros(batch, np.int64),
    }
    coarse = {"coarse_rows": np.array([1, 0])} if on_gpu and opened.get_overridable_initializers() else {}
    return {port.name: given[port.name] for port in opened.get_inputs()} | coarse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", default="1,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    for size, models in json.loads((given.folder / "models.json").read_text()).items():
        tables(given.folder, {name: kind for model in models.values() for name, kind in model["files"].items()})
        opened = {
            name: session(given.folder / model["model"], device=given.device, threads=given.threads)
            for name, model in models.items()
        }
        print(f"{size}, k = {given.k}, {given.threads} threads, {given.device}: median ms (5 % … 95 %), × the first")
        for batch in map(int, given.batches.split(",")):
            users = random.integers(0, 1024, batch)
            fed = {name: feeds(each, users, given.k, on_gpu=given.device == "cuda") for name, each in opened.items()}
            took: dict[str, list[float]] = {name: [] for name in opened}
            answers = {}
            for turn in range(given.rounds + 2):
                for name in random.permutation(list(opened)).tolist():
                    started = time.perf_counter()
                    answers[name] = opened[name].run(["recommendations", "scores"], fed[name])
                    if turn > 1:
                        took[name].append(1e3 * (time.perf_counter() - started))
            first = next(iter(opened))
            for name, taken in took.items():
                low, middle, high = np.percentile(taken, (5, 50, 95))
                same = np.array_equal(answers[name][0], answers[first][0])
                times = np.median(took[first]) / middle
                print(f"batch {batch:4} {name:12} {middle:8.3f} ({low:.3f} … {high:.3f}) {times:5.2f} x {same}")


if __name__ == "__main__":
    main()
