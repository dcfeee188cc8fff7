"""What `recommender serve` keeps of the calls/s that an empty grpc.aio servicer answers.

Both servers run in a process of their own, with the same environment, event loop, gRPC options, proto and
parsing; the empty one replies a constant of the same size. h2load (Debian: nghttp2-client) asks one and then
the other, in interleaved rounds; a round's share is one quotient. Run it on a machine that does little
else: `just bench-overhead`. Deduplication is off (its default), so every call is a row of its own; the rows
run and the calls answered are read from the server's last log line, which also proves that every call had status OK.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

SERVICE = "recommend_api.v1.RecommenderService"
METHOD = f"/{SERVICE}/Recommend"
HISTORY = tuple(range(100, 2100, 100))
CONNECTIONS = 4
WARM_UP_CALLS = 2000


class Empty(api_grpc.RecommenderServiceServicer):
    """The servicer that the proto generates, with one method that does nothing but reply."""

    def __init__(self, reply: api.RecommendResponse) -> None:
        self._reply = reply

    async def Recommend(  # noqa: N802 (gRPC names methods so)
        self,
        request: api.RecommendRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """The same for everybody."""
        return self._reply


# The other methods are abstract to mypy and inherited at run time, as in any servicer that implements a part.
Empty.__abstractmethods__ = frozenset()


def serve_empty(kind: str, port: int, reply: api.RecommendResponse) -> None:
    """Serve an empty servicer: as generated, or "lean", with one method that is found by name."""

    async def main() -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        empty = Empty(reply)  # type: ignore[abstract]
        if kind == "lean":
            handler = grpc.unary_unary_rpc_method_handler(
                empty.Recommend, api.RecommendRequest.FromString, api.RecommendResponse.SerializeToString
            )
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Recommend": handler}),))
        else:
            api_grpc.add_RecommenderServiceServicer_to_server(empty, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@dataclass(frozen=True)
class Load:
    """What h2load saw in one run."""

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
        """CPU time of the process so far, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(name: str, command: Sequence[str], port: int, log: Path) -> Iterator[Target]:
    """A server in a process of its own that answers on `port`, until it is no longer needed."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stderr=out, text=True)
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


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g} … {max(values):.3g}]"


def ask(port: int) -> api.RecommendResponse:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply: api.RecommendResponse = api_grpc.RecommenderServiceStub(channel).Recommend(
            api.RecommendRequest(item_ids=HISTORY), timeout=5
        )
        return reply


def throughput(ours: Target, empty: Target, body: Path, arguments: argparse.Namespace) -> None:
    for in_flight in arguments.in_flight:
        shares = []
        rates: dict[str, list[float]] = {empty.name: [], ours.name: []}
        cpu: dict[str, list[float]] = {empty.name: [], ours.name: []}
        for number in range(arguments.rounds):
            for target in (empty, ours) if number % 2 else (ours, empty):
                before = target.cpu_seconds()
                rates[target.name].append(target.load(body, arguments.calls, in_flight).calls_per_second)
                cpu[target.name].append((target.cpu_seconds() - before) / arguments.calls * 1e6)
            shares.append(rates[ours.name][-1] / rates[empty.name][-1])
        print(f"{in_flight} in flight: share {spread(shares)}")
        for name, values in rates.items():
            print(f"  {name:12} {spread(values)} calls/s, {spread(cpu[name])} µs CPU a call")


def latency(ours: Target, empty: Target, body: Path, rounds: int) -> None:
    medians: dict[str, list[float]] = {empty.name: [], ours.name: []}
    for _ in range(rounds):
        for target in (ours, empty):
            medians[target.name].append(statistics.median(target.load(body, 1000, 1).latencies))
    more = [ours_ - empty_ for ours_, empty_ in zip(medians[ours.name], medians[empty.name], strict=True)]
    print("one call at a time, median latency in ms:")
    for name, values in medians.items():
        print(f"  {name:12} {spread(values)}")
    print(f"  difference   {spread(more)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--latency-rounds", type=int, default=5)
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
        with running("recommender", serve, port, log) as ours:
            reply.write_bytes(ask(port).SerializeToString())
            port = free_port()
            command = [sys.executable, __file__, "serve-empty", arguments.empty, str(port), str(reply)]
            with running("empty", command, port, Path(folder, "log-empty")) as empty:
                for target in (ours, empty):
                    target.load(body, WARM_UP_CALLS, 32)
                throughput(ours, empty, body, arguments)
                latency(ours, empty, body, arguments.latency_rounds)
        for line in itertools.islice(reversed(log.read_text(encoding="utf-8").splitlines()), 1):
            stopped = json.loads(line)
            print({key: stopped.get(key) for key in ("answered", "rows_run", "runs")})


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve-empty"]:
        kind, port, reply = sys.argv[2:]
        serve_empty(kind, int(port), api.RecommendResponse.FromString(Path(reply).read_bytes()))
    else:
        main()
