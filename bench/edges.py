"""How many calls a second, how late and at what CPU: the grpc.aio edge, Envoy, and mosec with the same model.

`recommender serve` runs with either edge, mosec beside them where `--mosec PYTHON` names an interpreter that has it.
h2load (Debian: nghttp2-client) asks each in interleaved rounds, another history in each round: first as fast as
answers come with a fixed number of calls in flight, then 1,000 calls a second whatever comes back. Deduplication is
off, so equal histories in flight are rows of their own. CPU is that of the whole process tree. `just bench-edges`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from bench.peers.rows import PEERS, Limits, Row
from bench.serving import cpu_seconds
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

MODEL = Path("weights/10_model.onnx")
LENGTH = 20
CONNECTIONS = 4
RATE = 1000


@dataclass
class Served:
    """A server under load, and what was seen of it."""

    name: str
    port: int
    process: psutil.Process
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    open_p50: list[float] = field(default_factory=list)
    open_p99: list[float] = field(default_factory=list)
    open_cpu: list[float] = field(default_factory=list)

    @property
    def is_mosec(self) -> bool:
        """Whether it speaks JSON over HTTP/1.1."""
        return self.name == "mosec"

    def cpu_seconds(self) -> float:
        """CPU time so far of the process and all it started."""
        return cpu_seconds(self.process)

    def ask(self, history: Sequence[int], calls: int, in_flight: int, rate: int = 0) -> tuple[float, list[float]]:
        """Calls a second, and the milliseconds of each call."""
        with tempfile.TemporaryDirectory() as folder:
            body, log = Path(folder, "body"), Path(folder, "log")
            if self.is_mosec:
                body.write_text(json.dumps({"item_ids": list(history)}), encoding="utf-8")
                connections = in_flight
                words = ["--h1", "-m", "1", "-H", "content-type: application/json"]
                path = "/inference"
            else:
                message = api.RecommendRequest(item_ids=history).SerializeToString()
                body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
                connections = min(CONNECTIONS, in_flight)
                words = ["-m", str(in_flight // connections), "-H", "content-type: application/grpc"]
                words += ["-H", "te: trailers"]
                path = "/recommend_api.v1.RecommenderService/Recommend"
            if rate:
                words += ["--rps", f"{rate / connections:g}"]
            out = subprocess.run(
                ["h2load", "-n", str(calls), "-c", str(connections), "-t", "1", "-d", str(body), *words,
                 "--log-file", str(log), f"http://127.0.0.1:{self.port}{path}"],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            if f"{calls} succeeded, 0 failed" not in out:
                raise RuntimeError(out)
            found = re.search(r"([\d.]+) req/s", out)
            if found is None:
                raise RuntimeError(out)
            return float(found[1]), [int(line.split("\t")[2]) / 1e3 for line in log.read_text("ascii").splitlines()]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def answers(port: int, *, mosec: bool) -> bool:
    history = list(range(100, 2100, 100))
    try:
        if mosec:
            body = json.dumps({"item_ids": history}).encode()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/inference", body, timeout=5) as reply:
                return len(json.loads(reply.read())["item_ids"]) == 10
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = api_grpc.RecommenderServiceStub(channel)
            return len(stub.Recommend(api.RecommendRequest(item_ids=history), timeout=5).item_ids) == 10
    except (grpc.RpcError, OSError):
        return False


@contextmanager
def running(name: str, command: Sequence[str], environment: dict[str, str], port: int, log: Path) -> Iterator[Served]:
    with log.open("w") as out:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=out)
    try:
        for _ in range(300):
            if answers(port, mosec=name == "mosec"):
                break
            if process.poll() is not None:
                raise RuntimeError(log.read_text(encoding="utf-8"))
            time.sleep(0.1)
        else:
            raise RuntimeError(log.read_text(encoding="utf-8"))
        yield Served(name, port, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def measure(servers: Sequence[Served], arguments: argparse.Namespace) -> None:
    drawn = random.Random(1)
    for server in servers:
        server.ask(range(LENGTH), arguments.calls // 2, arguments.in_flight)
    for number in range(arguments.rounds):
        history = [drawn.randrange(10_000) for _ in range(LENGTH)]
        for server in servers if number % 2 else reversed(servers):
            before = server.cpu_seconds()
            rate, times = server.ask(history, arguments.calls, arguments.in_flight)
            server.cpu.append((server.cpu_seconds() - before) / arguments.calls * 1e6)
            server.rates.append(rate)
            server.p50.append(statistics.median(times))
            server.p99.append(percentile(times, 0.99))
        for server in servers if number % 2 else reversed(servers):
            before = server.cpu_seconds()
            calls = RATE * arguments.seconds
            _, times = server.ask(history, calls, arguments.in_flight, RATE)
            server.open_cpu.append((server.cpu_seconds() - before) / calls * 1e6)
            server.open_p50.append(statistics.median(times))
            server.open_p99.append(percentile(times, 0.99))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.4g} [{min(values):,.4g} … {max(values):,.4g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=8000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=2, help="how long each round of 1,000 calls a second lasts")
    parser.add_argument("--mosec", help="a Python that has mosec, numpy and onnxruntime")
    parser.add_argument("--mosec-workers", type=int, default=1)
    arguments = parser.parse_args()

    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = []
        for edge in ("grpc", "envoy"):
            port = free_port()
            environment = {"RECOMMENDER_EDGE": edge, "RECOMMENDER_PORT": str(port), "RECOMMENDER_MODEL": str(MODEL)}
            command = [sys.executable, "-m", "recommender", "serve"]
            servers.append(stack.enter_context(running(edge, command, environment, port, Path(folder, edge))))
        if arguments.mosec:
            port = free_port()
            row = Row("mosec", PEERS["mosec"], Limits(64, 1, threads))
            environment = {**row.environment(MODEL.resolve(), port), "BENCH_WORKERS": str(arguments.mosec_workers)}
            environment["PYTHONPATH"] = str(Path(__file__).parents[1])
            command = row.peer.command(arguments.mosec, port)
            servers.append(stack.enter_context(running("mosec", command, environment, port, Path(folder, "mosec"))))
        measure(servers, arguments)

    console = Console(width=140)
    table = Table("", *(each.name for each in servers), title=f"{arguments.in_flight} calls in flight")
    table.add_row("calls/s", *(spread(each.rates) for each in servers))
    table.add_row("× grpc", *(spread([a / b for a, b in zip(s.rates, servers[0].rates, strict=True)]) for s in servers))
    table.add_row("CPU µs a call", *(spread(each.cpu) for each in servers))
    table.add_row("p50 ms", *(spread(each.p50) for each in servers))
    table.add_row("p99 ms", *(spread(each.p99) for each in servers))
    console.print(table)
    table = Table("", *(each.name for each in servers), title=f"{RATE:,} calls a second")
    table.add_row("CPU µs a call", *(spread(each.open_cpu) for each in servers))
    table.add_row("p50 ms", *(spread(each.open_p50) for each in servers))
    table.add_row("p99 ms", *(spread(each.open_p99) for each in servers))
    console.print(table)


if __name__ == "__main__":
    main()
