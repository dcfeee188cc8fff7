"""The longest stall of the event loop while ONNX Runtime builds a session, and while it frees one.

`just bench stall weights/10_model.onnx --rounds 5`; needs no part of recommender, so it runs with any ONNX Runtime.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import onnxruntime
import uvloop


def build(path: Path, *, optimise: bool, pack: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


async def measure(path: Path, *, optimise: bool, pack: bool) -> tuple[float, float, float, float]:
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.3)
    quiet = max(gaps)
    gaps.clear()
    started = time.perf_counter()
    session = await asyncio.to_thread(build, path, optimise=optimise, pack=pack)
    took = time.perf_counter() - started
    await asyncio.sleep(0.02)
    worst = max(gaps)
    started = time.perf_counter()
    del session
    freed = time.perf_counter() - started
    ticking.cancel()
    return quiet, took, worst, freed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"ONNX Runtime {onnxruntime.__version__}, {given.model}, {given.model.stat().st_size / 1e6:.1f} MB; ms")
    for optimise, pack in ((True, True), (False, True), (True, False)):
        rounds = [uvloop.run(measure(given.model, optimise=optimise, pack=pack)) for _ in range(given.rounds)]
        quiet, took, worst, freed = (statistics.median(column) * 1e3 for column in zip(*rounds, strict=True))
        largest = max(each[2] for each in rounds) * 1e3
        what = f"{'optimised' if optimise else 'as it is':9}, {'packed' if pack else 'unpacked':8}"
        print(
            f"{what}: build {took:6.1f}, longest gap {worst:5.1f} (largest {largest:.1f}, undisturbed {quiet:.1f}), "
            f"free {freed:.1f}"
        )


if __name__ == "__main__":
    main()
