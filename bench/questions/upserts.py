"""Cost of new items for single calls: without any, at the limit, and while a thousand a second are replaced.

One server, 1,000,000 items of 32 numbers with keys. Singles come at a constant rate and are timed from when they were
due. Another process replaces new items, a hundred in a call. The three kinds follow each other in every round, so a
round gives one ratio of each to the calm server. `just bench-upserts`
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench.facts import machine
from bench.figures import spread
from bench.questions.beside import singles
from bench.serving import Server, serving
from recommender.client import NewItem, SyncClient
from recommender.export import ExportOptions, export_model
from recommender.recommend_api.v1 import catalogue_api_pb2 as api
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as api_grpc

TIMEOUT = 60.0
LABEL = "reference@1"
CALM: Final = "no new items"
KINDS = (CALM, "all that may be", "all, and a thousand a second replaced")
MOST = 1.3
"""The largest ratio of p99 that is wanted."""


def export(folder: Path, items: int, dim: int) -> Path:
    """A reference model with keys."""
    keys = folder / "keys.txt"
    keys.write_text("".join(f"item {number}\n" for number in range(items)), encoding="utf-8")
    path = folder / "10_model.onnx"
    return export_model(ExportOptions(items=items, dim=dim, vocabulary=keys, output=path))


def new_items(number: int, dim: int, seed: int) -> list[NewItem]:
    """New items of ordinary vectors: some of them are among the best of a history."""
    vectors = np.random.default_rng(seed).random((number, dim), dtype=np.float32)
    return [NewItem(f"new {place}", row.tolist()) for place, row in enumerate(vectors)]


def replace(target: str, number: int, dim: int, a_second: float, a_call: int, sending: Event) -> None:
    """Replace new items at a constant rate until ended; a call that fails ends this process."""
    items = new_items(number, dim, 1)
    calls = [
        api.UpsertItemsRequest(
            model=LABEL,
            items=[api.NewItem(key=item.key, vector=item.vector) for item in items[start : start + a_call]],
        )
        for start in range(0, number, a_call)
    ]
    with grpc.insecure_channel(target) as channel:
        stub = api_grpc.CatalogueServiceStub(channel)
        started = time.perf_counter()
        for count, call in enumerate(itertools.cycle(calls)):
            time.sleep(max(started + count * a_call / a_second - time.perf_counter(), 0.0))
            stub.UpsertItems(call, timeout=TIMEOUT)
            sending.set()


@contextmanager
def replacing(server: Server, options: argparse.Namespace) -> Iterator[None]:
    """Have new items replaced meanwhile."""
    context = multiprocessing.get_context("spawn")
    sending = context.Event()
    arguments = (server.target, options.new, options.dim, options.upserts, options.a_call, sending)
    process = context.Process(target=replace, args=arguments, daemon=True)
    process.start()
    try:
        if not sending.wait(TIMEOUT):
            raise RuntimeError("no call was answered")
        yield
        if not process.is_alive():
            raise RuntimeError("a call failed")
    finally:
        process.kill()
        process.join()


def settle(client: SyncClient, key: str, *, there: bool) -> None:
    """Wait until a new item is ranked, or no longer."""
    ends = time.monotonic() + TIMEOUT
    while bool(client.recommend([0], candidate_item_keys=[key], timeout=TIMEOUT).item_keys) is not there:
        if time.monotonic() > ends:
            raise RuntimeError(f"{key} does not settle")
        time.sleep(0.05)


def measured(server: Server, options: argparse.Namespace) -> dict[str, list[tuple[float, float, float]]]:
    """The p50 and p99 of each kind in each round, in milliseconds, and the server's share of a CPU."""
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    items = new_items(options.new, options.dim, 1)
    keys = [item.key for item in items]

    def ask(kind: str) -> None:
        before, started = server.cpu_seconds(), time.perf_counter()
        latencies = uvloop.run(singles(server.target, options.rate, options.seconds))
        share = (server.cpu_seconds() - before) / (time.perf_counter() - started)
        found[kind].append((float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99)), share))

    with SyncClient(server.target) as client:
        uvloop.run(singles(server.target, options.rate, 2.0))
        for _ in range(options.rounds):
            ask(KINDS[0])
            client.upsert_items(LABEL, items, timeout=TIMEOUT)
            settle(client, keys[-1], there=True)
            ask(KINDS[1])
            with replacing(server, options):
                ask(KINDS[2])
            client.remove_items(keys, timeout=TIMEOUT)
            settle(client, keys[-1], there=False)
    return found


def main() -> int:
    """Show the ratios; 1 if a median is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each kind in a round")
    parser.add_argument("--rate", type=float, default=200.0, help="single calls a second")
    parser.add_argument("--upserts", type=float, default=1000.0, help="new items a second")
    parser.add_argument("--a-call", type=int, default=100, help="new items of a call")
    parser.add_argument("--new", type=int, default=10_000, help="new items in all, the server's limit")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--setting", action="append", default=[], help="KEY=VALUE of the server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "RECOMMENDER_MODEL": str(export(Path(folder), options.items, options.dim)),
            "RECOMMENDER_CATALOGUE_WRITES": "true",
            "RECOMMENDER_CATALOGUE_JOURNAL": str(Path(folder, "journal.sqlite")),
            "RECOMMENDER_MAX_NEW_ITEMS": str(options.new),
        }
        settings |= dict(each.split("=", 1) for each in options.setting)
        with serving(settings=settings) as server:
            found = measured(server, options)
    ratios = show(found)
    json.dump({"machine": machine(), "rounds": found, "ratios": ratios}, sys.stdout, indent=1)
    sys.stdout.write(os.linesep)
    return int(statistics.median(ratios[KINDS[2]]) > MOST)


def show(found: dict[str, list[tuple[float, float, float]]]) -> dict[str, Sequence[float]]:
    """Print a table; returns the ratios of p99 to that of the calm server, round by round."""
    table = Table("new items", "p50 ms", "p99 ms", "CPUs", "p99 by that of the calm server")
    calm = [p99 for _, p99, _ in found[CALM]]
    ratios: dict[str, Sequence[float]] = {}
    for kind, rounds in found.items():
        ratios[kind] = [p99 / without for (_, p99, _), without in zip(rounds, calm, strict=True)]
        table.add_row(kind, *(spread(column, ".2f") for column in zip(*rounds, strict=True)), spread(ratios[kind]))
    Console(width=120).print(table)
    return ratios


if __name__ == "__main__":
    sys.exit(main())
