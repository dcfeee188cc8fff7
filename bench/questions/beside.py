"""Latency of single calls during batch calls: alone, with calls of 1 MB, and with calls of 4 MB.

One server. Single calls are sent at a constant rate and timed from when they were due. Another process sends batch
calls back to back, a thousand requests each, and parses no reply. The three kinds take turns in every round. `just
bench-beside`; with `--setting RECOMMENDER_EDGE=envoy` on the other edge.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import grpc
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench.facts import machine
from bench.figures import spread
from bench.serving import serving
from recommender.recommend_api.v1 import recommend_api_pb2 as api

METHOD = "/recommend_api.v1.RecommenderService"
ROWS = 1000
ITEMS = 10_000
KINDS = {"alone": 0, "beside 1 MB": 1_000_000, "beside 4 MB": 4_000_000}
TARGETS = {"beside 1 MB": 20.0, "beside 4 MB": 60.0}
"""The p99 of singles that must hold, in milliseconds."""
TIMEOUT = 60.0


def call_of(size: int) -> bytes:
    """A batch call of about that many bytes: an id takes two."""
    drawn = random.Random(1)
    length = size // ROWS // 2
    histories = ([drawn.randrange(128, ITEMS) for _ in range(length)] for _ in range(ROWS))
    return api.BatchRecommendRequest(
        requests=[api.RecommendRequest(item_ids=history) for history in histories]
    ).SerializeToString()


def send_batches(target: str, size: int, sending: Event) -> None:
    """Send one batch call after another until ended; a failed one ends this process."""
    message = call_of(size)
    with grpc.insecure_channel(target, (("grpc.max_receive_message_length", -1),)) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{METHOD}/BatchRecommend")
        while True:
            method(message, timeout=TIMEOUT)
            sending.set()


@contextmanager
def batches(target: str, size: int) -> Iterator[None]:
    """Have batch calls of that size sent meanwhile; none if it is 0."""
    if not size:
        yield
        return
    context = multiprocessing.get_context("spawn")
    sending = context.Event()
    process = context.Process(target=send_batches, args=(target, size, sending), daemon=True)
    process.start()
    try:
        if not sending.wait(TIMEOUT):
            raise RuntimeError("no batch call was answered")
        yield
        if not process.is_alive():
            raise RuntimeError("a batch call failed")
    finally:
        process.kill()
        process.join()


async def singles(target: str, rate: float, seconds: float) -> list[float]:
    """Latencies of single calls at a constant rate, in milliseconds from when each was due."""
    message = api.RecommendRequest(item_ids=range(20)).SerializeToString()
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(target) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{METHOD}/Recommend")
        await method(message, timeout=TIMEOUT)

        async def ask(due: float) -> None:
            await method(message, timeout=TIMEOUT)
            latencies.append((time.perf_counter() - due) * 1e3)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for number in range(int(rate * seconds)):
                due = started + number / rate
                await asyncio.sleep(max(due - time.perf_counter(), 0.0))
                calls.create_task(ask(due))
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=100.0, help="single calls a second")
    parser.add_argument("--setting", action="append", default=[], help="KEY=VALUE of the server")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    with serving(settings=dict(each.split("=", 1) for each in options.setting)) as server:
        for _ in range(options.rounds):
            for kind, size in KINDS.items():
                with batches(server.target, size):
                    latencies = uvloop.run(singles(server.target, options.rate, options.seconds))
                p50, p99, most = (float(np.percentile(latencies, at)) for at in (50, 99, 100))
                found[kind].append((p50, p99, most))
    show(found)
    json.dump({"machine": machine(), "rounds": found}, sys.stdout, indent=1)
    sys.stdout.write(os.linesep)


def show(found: dict[str, list[tuple[float, float, float]]]) -> None:
    table = Table("singles", "p50 ms", "p99 ms", "longest ms", "target of p99")
    for kind, rounds in found.items():
        target = f"{TARGETS[kind]:g} ms" if kind in TARGETS else ""
        table.add_row(kind, *(spread(column, ".1f") for column in zip(*rounds, strict=True)), target)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
