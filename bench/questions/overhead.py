"""What `recommender serve` keeps of the calls/s that an empty grpc.aio servicer answers.

Beside it stand `least`: a servicer that reads the ids and replies ten items of its own, with no batcher, engine or
model, which is the most that any servicer in Python can reach; and `naive`: the batcher that everybody writes
first (a list, one executor thread, a future for each call) with the same model file.

All servers run in a process of their own, with the same environment, event loop, gRPC options, proto and
parsing; the empty one replies a constant of the same size. h2load (Debian: nghttp2-client) asks one and then
the other, in interleaved rounds; a round's share is one quotient. Run it on a machine that does little
else: `just bench-overhead`. Deduplication is off (its default), so every call is a row of its own; the rows
run and the calls answered are read from the server's last log line, which also proves that every call had status OK.

With `--edge envoy` the server and `empty` and `least` stand behind Envoy, as ASGI applications in the same process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from bench.figures import interval, spread
from bench.serving import cpu_seconds, free_port
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from recommender.settings.network import Edge

SERVICE = "recommend_api.v1.RecommenderService"
METHOD = f"/{SERVICE}/Recommend"
HISTORY = tuple(range(100, 2100, 100))
CONNECTIONS = 4
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)
WARM_UP_CALLS = 2000


@dataclass(frozen=True)
class Load:
    """Result of h2load for one run."""

    calls_per_second: float
    latencies: tuple[float, ...]
    """Of single calls, in milliseconds."""


@dataclass(frozen=True)
class Target:
    """A server under load."""

    name: str
    port: int
    process: subprocess.Popen[str]

    def load(self, body: Path, calls: int, in_flight: int) -> Load:
        """Ask `calls` times, `in_flight` at once over a few connections."""
        connections = min(CONNECTIONS, in_flight)
        with tempfile.NamedTemporaryFile("r") as log:
            out = subprocess.run(
                ["h2load", "-n", str(calls), "-c", str(connections), "-m", str(in_flight // connections), "-t", "1",
                 "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", log.name,
                 f"http://127.0.0.1:{self.port}{METHOD}"],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            latencies = tuple(int(line.split("\t")[2]) / 1e3 for line in log)
        if f"{calls} succeeded, 0 failed" not in out:
            raise RuntimeError(out)
        found = re.search(r"([\d.]+) req/s", out)
        if found is None:
            raise RuntimeError(out)
        return Load(float(found[1]), latencies)

    def cpu_seconds(self) -> float:
        """CPU time of the server so far."""
        return cpu_seconds(psutil.Process(self.process.pid))


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """A server in a separate process that answers on `port`, until it is closed."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out, text=True, env=environment)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = api_grpc.RecommenderServiceStub(channel)
            for _ in range(600):
                try:
                    stub.Recommend(api.RecommendRequest(item_ids=HISTORY), timeout=5)
                    break
                except grpc.RpcError:
                    if process.poll() is not None:
                        raise RuntimeError(log.read_text(encoding="utf-8")) from None
                    time.sleep(0.05)
        yield Target(name, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ask(port: int) -> api.RecommendResponse:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply: api.RecommendResponse = api_grpc.RecommenderServiceStub(channel).Recommend(
            api.RecommendRequest(item_ids=HISTORY), timeout=5
        )
        return reply


def columns(*names: str, title: str) -> Table:
    """A table that a narrow terminal does not break."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def throughput(targets: Sequence[Target], body: Path, arguments: argparse.Namespace) -> None:
    """Calls/s of all targets, in rounds; the first is compared with each other one, the last is the empty servicer."""
    for in_flight in arguments.in_flight:
        rates: dict[str, list[float]] = {target.name: [] for target in targets}
        cpu: dict[str, list[float]] = {target.name: [] for target in targets}
        for number in range(arguments.rounds):
            for target in targets if number % 2 else reversed(targets):
                before = target.cpu_seconds()
                rates[target.name].append(target.load(body, arguments.calls, in_flight).calls_per_second)
                cpu[target.name].append((target.cpu_seconds() - before) / arguments.calls * 1e6)
        table = columns("calls/s", "share", "µs CPU a call", title=f"{in_flight} in flight")
        ours, *others = (target.name for target in targets)
        for name, values in rates.items():
            shares = quotients(values, rates[others[-1]])
            table.add_row(name, spread(values, ",.0f"), spread(shares, ".2f"), spread(cpu[name], ",.0f"))
        CONSOLE.print(table)
        table = columns("× its calls/s", "µs CPU a call beyond", title="recommender, median and its 95 % interval")
        for name in others:
            beyond = [mine - its for mine, its in zip(cpu[ours], cpu[name], strict=True)]
            table.add_row(name, bounded(quotients(rates[ours], rates[name]), ".2f"), bounded(beyond, ",.0f"))
        CONSOLE.print(table)


def quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of each round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def bounded(values: Sequence[float], form: str) -> str:
    """The median and its interval."""
    low, high = interval(values)
    return f"{statistics.median(values):{form}} ({low:{form}} … {high:{form}})"


def latency(targets: Sequence[Target], body: Path, rounds: int) -> None:
    """Median latency of one call at a time, and how much more it is than that of the empty servicer."""
    medians: dict[str, list[float]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            medians[target.name].append(statistics.median(target.load(body, 1000, 1).latencies))
    table = columns("ms", "more than empty", title="one call at a time, median latency")
    for name, values in medians.items():
        more = [ours - empty for ours, empty in zip(values, medians[targets[-1].name], strict=True)]
        table.add_row(name, spread(values, ".2f"), spread(more, ".2f"))
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--beside", nargs="*", choices=("least", "naive"), default=["least", "naive"])
    parser.add_argument("--latency-rounds", type=int, default=5)
    parser.add_argument("--edge", default="grpc", choices=get_args(Edge), help="with envoy there is no naive servicer")
    parser.add_argument(
        "--empty",
        choices=("generated", "lean"),
        default="generated",
        help="the empty servicer: as the proto generates it, or with the one method found by name, as ours is",
    )
    arguments = parser.parse_args()

    request = api.RecommendRequest(item_ids=HISTORY).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        body, reply, log = (Path(folder, name) for name in ("body", "reply", "log"))
        body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
        port = free_port()
        serve = [sys.executable, "-m", "recommender", "serve", "--port", str(port)]
        others = {"empty" if kind == arguments.empty else kind: kind for kind in (*arguments.beside, arguments.empty)}
        if arguments.edge == "envoy":
            others = {"least": "least", "empty": "empty"}
        command = [sys.executable, "-m", f"bench.{arguments.edge}_servicers"]
        environment = {**os.environ, "RECOMMENDER_EDGE": arguments.edge}
        with ExitStack() as stack:
            targets = [stack.enter_context(running("recommender", serve, port, log, environment))]
            reply.write_bytes(ask(port).SerializeToString())
            for name, kind in others.items():
                port, said = free_port(), Path(folder, f"log-{kind}")
                asked = [*command, kind, str(port), str(reply)]
                targets.append(stack.enter_context(running(name, asked, port, said, environment)))
            for target in targets:
                target.load(body, WARM_UP_CALLS, 32)
            throughput(targets, body, arguments)
            latency(targets, body, arguments.latency_rounds)
        for line in itertools.islice(reversed(log.read_text(encoding="utf-8").splitlines()), 1):
            stopped = json.loads(line)
            print({key: stopped.get(key) for key in ("answered", "rows_run", "runs")})


if __name__ == "__main__":
    main()
