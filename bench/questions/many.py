"""Histories per second of batch calls and streams, compared with single calls and with the engine alone.

h2load (Debian: nghttp2-client) sends unary calls, batch calls and streams to one server in interleaved rounds. Between
them the engine alone runs the same rows at the same batch size in this process. A stream is one HTTP/2 request whose
body is many messages. Histories of a body differ, deduplication is off. Any status other than OK stops the run. `just
bench-many`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from recommender.domain import Query
from recommender.engine.engine import OnnxEngine
from recommender.models.artifact import open_artifact
from recommender.models.loader import open_model
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.engine import EngineSettings

SERVICE = "recommend_api.v1.RecommenderService"
ROWS = 64
STREAMED = 512
LENGTH = 20
MODEL = Path("weights/10_model.onnx")


def histories(count: int) -> list[list[int]]:
    drawn = random.Random(1)
    return [[drawn.randrange(10_000) for _ in range(LENGTH)] for _ in range(count)]


def framed(*messages: bytes) -> bytes:
    """The messages as gRPC puts them on a stream, uncompressed."""
    return b"".join(struct.pack(">BI", 0, len(message)) + message for message in messages)


def bodies() -> dict[str, tuple[bytes, int]]:
    """By method: the body of one HTTP/2 request and how many histories it has."""
    requests = [api.RecommendRequest(item_ids=history) for history in histories(STREAMED)]
    stream = (api.StreamRecommendRequest(correlation_id=i, request=each) for i, each in enumerate(requests))
    return {
        "Recommend": (framed(requests[0].SerializeToString()), 1),
        "BatchRecommend": (framed(api.BatchRecommendRequest(requests=requests[:ROWS]).SerializeToString()), ROWS),
        "StreamRecommend": (framed(*(message.SerializeToString() for message in stream)), STREAMED),
    }


@contextmanager
def serving() -> Iterator[int]:
    """`recommender serve` with default settings in a separate process; gives the port."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RECOMMENDER_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "recommender", "serve", "--port", "0", "--log-level", "info"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "listening":
                port = int(event["address"].rsplit(":", 1)[1])
            if event["event"] == "ready":
                break
        yield port
    finally:
        process.terminate()
        process.wait()


def load(port: int, path: str, body: bytes, rows: int, calls: int) -> float:
    """Histories answered per second by `calls` calls of a method, named with its service."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        out = subprocess.run(
            ["h2load", "-n", str(calls), "-c", "2", "-m", "4" if rows > 1 else "32", "-t", "1", "-d", file.name,
             "-H", "content-type: application/grpc", "-H", "te: trailers",
             f"http://127.0.0.1:{port}/{path}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    found = re.search(r"([\d.]+) req/s", out)
    if found is None or f"{calls} succeeded, 0 failed" not in out:
        raise RuntimeError(out)
    return float(found[1]) * rows


def check(port: int, sent: dict[str, tuple[bytes, int]]) -> None:
    """Each kind of call is really answered: h2load sees HTTP statuses only."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = api_grpc.RecommenderServiceStub(channel)
        batch = api.BatchRecommendRequest.FromString(sent["BatchRecommend"][0][5:])
        results = stub.BatchRecommend(batch, timeout=10).results
        assert [result.WhichOneof("outcome") for result in results] == ["response"] * ROWS
        messages = (api.StreamRecommendRequest(correlation_id=i, request=r) for i, r in enumerate(batch.requests))
        replies = list(stub.StreamRecommend(messages, timeout=10))
        assert sorted(reply.correlation_id for reply in replies) == list(range(ROWS))


async def alone(engine: OnnxEngine, seconds: float) -> float:
    """Histories per second of the engine alone, run after run at the same batch size."""
    queries = [Query(tuple(history), 10) for history in histories(ROWS)]
    started, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        await engine.run(queries)
        runs += 1
    return runs * ROWS / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    sent = bodies()
    seen: dict[str, list[float]] = {name: [] for name in ("engine alone", *sent)}
    with serving() as port, asyncio.Runner() as runner:
        engine = open_model(EngineSettings(), open_artifact(MODEL))
        runner.run(engine.warm_up(ROWS))
        check(port, sent)
        kinds: dict[str, Callable[[int], float]] = {
            method: lambda calls, method=method, body=body, rows=rows: load(
                port, f"{SERVICE}/{method}", body, rows, calls
            )  # type: ignore[misc]
            for method, (body, rows) in sent.items()
        }
        calls = dict.fromkeys(kinds, 32)
        for method, kind in kinds.items():  # how many calls last about that long
            rate = kind(2000 if method == "Recommend" else 64)
            calls[method] = max(int(rate / sent[method][1] * options.seconds), 8)
        for _ in range(options.rounds):
            seen["engine alone"].append(runner.run(alone(engine, options.seconds)))
            for method, kind in kinds.items():
                seen[method].append(kind(calls[method]))
        engine.close()
    show(seen)


def show(seen: dict[str, list[float]]) -> None:
    table = Table("kind", "histories/s, median", "least", "most", "× unary, median", "× engine alone, median")
    for name, rates in seen.items():
        to_unary = statistics.median(a / b for a, b in zip(rates, seen["Recommend"], strict=True))
        to_engine = statistics.median(a / b for a, b in zip(rates, seen["engine alone"], strict=True))
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}",
            f"{max(rates):,.0f}",
            f"{to_unary:.2f}",
            f"{to_engine:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
