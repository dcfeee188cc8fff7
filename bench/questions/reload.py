"""Effect of a swap on callers: latency before and during promotions and rollbacks, errors, stalls, memory.

A real MLflow server, a server that follows `models:/bench@champion`, and an open-loop load: requests leave on time
whether or not the ones before them were answered. Every swap moves the alias; its window lasts from that moment to half
a second after the new version serves, and the window before it is as long. `just bench-reload`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from recommender.models.sources.mlflow import Registry
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.server.process import spare_collections
from tests.support.mlflow_server import running_mlflow

_BEFORE = 3.0
_AFTER = 0.5


def recommender(*arguments: str, **settings: str) -> None:
    environment = {**os.environ, **{f"RECOMMENDER_{key}": value for key, value in settings.items()}}
    subprocess.run([sys.executable, "-m", "recommender", *arguments], env=environment, check=True)


@asynccontextmanager
async def serving(uri: str, folder: Path) -> AsyncIterator[tuple[int, int, int, list[dict[str, Any]]]]:
    """A server that follows the alias: its port, its metrics' port, its process, and its growing log."""
    settings = {
        "RECOMMENDER_MODEL": "models:/bench@champion",
        "RECOMMENDER_REGISTRY_URI": uri,
        "RECOMMENDER_MODEL_CACHE_DIR": str(folder / "cache"),
        "RECOMMENDER_MODEL_POLL_MS": "500",
        "RECOMMENDER_METRICS_PORT": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "recommender", "serve", "--port", "0",
        env={**os.environ, **settings}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    events: list[dict[str, Any]] = []

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            if line.startswith(b"{"):
                events.append({**json.loads(line), "at": time.perf_counter()})  # noqa: PERF401 (line by line)

    reading = asyncio.create_task(read())
    try:
        while not any(event["event"] == "ready" for event in events):
            assert process.returncode is None
            await asyncio.sleep(0.05)
        port, metrics = (
            int(next(each for each in events if each["event"] == event)["address"].split(":")[-1].split("/")[0])
            for event in ("listening", "metrics")
        )
        yield port, metrics, process.pid, events
    finally:
        process.terminate()
        await process.wait()
        await reading


class Load:
    """Requests at a steady rate; `seen` has when each left, what it took, and which version answered, or the error."""

    def __init__(self, port: int, rate: float, items: int) -> None:
        self.seen: list[tuple[float, float, str]] = []
        self._rate = rate
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._call = api_grpc.RecommenderServiceStub(self._channel).Recommend
        drawn = random.Random(1)
        self._requests = [
            api.RecommendRequest(item_ids=[drawn.randrange(items) for _ in range(20)]) for _ in range(256)
        ]
        self._task = asyncio.create_task(self._run())
        self._open: set[asyncio.Task[None]] = set()

    async def _run(self) -> None:
        due = time.perf_counter()
        for request in self._requests * 100_000:
            due += 1 / self._rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(self._ask(request, due))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _ask(self, request: api.RecommendRequest, due: float) -> None:
        try:
            answer = (await self._call(request, timeout=5.0)).model_version
        except grpc.aio.AioRpcError as error:
            answer = error.code().name
        self.seen.append((due, time.perf_counter() - due, answer))

    async def close(self) -> None:
        """Send no more, and wait for what is open."""
        self._task.cancel()
        await asyncio.gather(*self._open)
        await self._channel.close()

    def p99(self, start: float, end: float) -> float:
        """The 99th percentile in seconds of the requests that were due between two moments."""
        took = sorted(took for due, took, _ in self.seen if start <= due < end)
        return took[min(int(len(took) * 0.99), len(took) - 1)]


def resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def lags(port: int) -> dict[str, float]:
    """How often the event loop was late by at most how many seconds, as the server's metrics have it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = (line for line in lines if line.startswith("recommender_event_loop_lag_seconds_bucket"))
    return {line.split('le="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}


async def measure(uri: str, folder: Path, given: argparse.Namespace) -> None:
    registry = Registry(uri)
    registry.promote("bench", "1", "champion")  # as it is: MLflow's client imports what it needs when it is used
    spare_collections()  # a pause of the generator's is no caller's wait
    rows: list[tuple[float, float, float, float]] = []
    async with serving(uri, folder) as (port, metrics, pid, events):
        load = Load(port, given.rate, given.items)
        await asyncio.sleep(_BEFORE)
        lags_before = lags(metrics)
        for swap in range(given.swaps):
            await asyncio.sleep(_BEFORE)
            started, known = time.perf_counter(), len(events)
            wanted = "2" if swap % 2 == 0 else "1"
            if wanted == "2":
                await asyncio.to_thread(registry.promote, "bench", wanted, "champion")
            else:
                await asyncio.to_thread(registry.roll_back, "bench", "champion")
            while not (done := [each for each in events[known:] if each["event"] == "version served"]):
                assert not [each for each in events[known:] if each["event"] == "version refused"]
                await asyncio.sleep(0.05)
            end = done[0]["at"] + _AFTER
            await asyncio.sleep(1.0)
            length = end - started
            before, during = load.p99(started - min(length, _BEFORE), started), load.p99(started, end)
            rows.append((length - _AFTER, before, during, resident(pid)))
            assert load.seen[-1][2] == f"bench@{wanted}", load.seen[-1]
        late = {bound: count - lags_before[bound] for bound, count in lags(metrics).items()}
        await load.close()
    answers: dict[str, int] = {}
    for _, _, answer in load.seen:
        answers[answer] = answers.get(answer, 0) + 1
    table = Table("swap", "served after s", "p99 before ms", "p99 during ms", "ratio", "resident MB")
    for number, (length, before, during, memory) in enumerate(rows, 1):
        ratio = f"{during / before:.2f}"
        table.add_row(
            str(number), f"{length:.1f}", f"{before * 1e3:.1f}", f"{during * 1e3:.1f}", ratio, f"{memory:.0f}"
        )
    out = Console()
    out.print(table)
    ratios = sorted(during / before for _, before, during, _ in rows)
    total = late.get("+Inf", 0)
    stalls = ", ".join(
        f"{total - count:.0f} above {float(bound) * 1e3:g} ms"
        for bound, count in late.items()
        if bound != "+Inf" and count < total
    )
    out.print(
        f"{given.items:,} × {given.dim}, {given.rate:g} requests/s, {len(load.seen)} answers: {answers}\n"
        f"p99 during ÷ before: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}\n"
        f"event loop, {total:.0f} samples: {stalls or 'none late'}",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--swaps", type=int, default=6)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_mlflow(Path(name)) as uri:
        folder = Path(name)
        for seed in ("1", "2"):
            path = str(folder / seed / "model.onnx")
            size = ("--items", str(given.items), "--dim", str(given.dim), "--seed", seed)
            recommender("export", *size, "--num-recommendations", "10", "--output", path)
            promoted = ("--alias", "champion") if seed == "1" else ()
            recommender("models", "push", str(folder / seed), "--name", "bench", *promoted, REGISTRY_URI=uri)
        asyncio.run(measure(uri, folder, given))


if __name__ == "__main__":
    main()
