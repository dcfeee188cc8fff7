"""What `recommender serve` keeps of the calls/s that an empty grpc.aio servicer answers.

Beside it stand `least`: a servicer that reads the ids and replies ten items of its own, with no batcher, engine or
model, which is the most that any servicer in Python can reach; and `naive`: the batcher that everybody writes
first (a list, one executor thread, a future for each call) with the same model file.

All servers run in a process of their own, with the same environment, event loop, gRPC options, proto and
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
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.facts import ROOT
from bench.figures import spread
from bench.serving import cpu_seconds, free_port
from recommender.engine.machine import available_cpus
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

IDS, SCORES = list(range(10)), [1.5] * 10
SERVICE = "recommend_api.v1.RecommenderService"
METHOD = f"/{SERVICE}/Recommend"
HISTORY = tuple(range(100, 2100, 100))
CONNECTIONS = 4
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)
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
        """The same for all servers."""
        return self._reply


# The other methods are abstract to mypy and inherited at run time, as in any servicer that implements a part.
Empty.__abstractmethods__ = frozenset()


class Least(Empty):
    """Does what no servicer can do without: reads the history, and builds a reply."""

    async def Recommend(  # noqa: N802
        self,
        request: api.RecommendRequest,
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """Ten items and scores that depend on nothing."""
        history = tuple(request.item_ids)
        if min(history) < 0:
            raise ValueError(history)
        reply = self._reply
        return api.RecommendResponse(
            item_ids=IDS,
            scores=SCORES,
            model_version=reply.model_version,
            request_id=reply.request_id,
            source=reply.source,
        )


class Naive(Empty):
    """The usual first batcher."""

    def __init__(self, reply: api.RecommendResponse) -> None:
        super().__init__(reply)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cpus()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = ROOT / "weights" / "10_model.onnx"
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._takes = {each.name for each in self._session.get_inputs()}
        self._waiting: list[tuple[tuple[int, ...], asyncio.Future[tuple[list[int], list[float]]]]] = []
        self._come = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def Recommend(  # noqa: N802
        self,
        request: api.RecommendRequest,
        context: grpc.aio.ServicerContext[api.RecommendRequest, api.RecommendResponse],  # noqa: ARG002
    ) -> api.RecommendResponse:
        """Rank in the next batch."""
        future: asyncio.Future[tuple[list[int], list[float]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((tuple(request.item_ids), future))
        self._come.set()
        ids, scores = await future
        return api.RecommendResponse(item_ids=ids, scores=scores)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._come.wait()
            self._come.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:64], self._waiting[64:]
                ranked = await loop.run_in_executor(self._thread, self._run, [history for history, _ in batch])
                for (_, future), each in zip(batch, ranked, strict=True):
                    if not future.done():
                        future.set_result(each)

    def _run(self, histories: Sequence[tuple[int, ...]]) -> list[tuple[list[int], list[float]]]:
        rows, longest = len(histories), max(map(len, histories))
        padded = np.zeros((rows, longest), np.int64)
        for row, history in enumerate(histories):
            padded[row, : len(history)] = history
        feed = {
            "user_history": padded,
            "history_length": np.array([len(history) for history in histories]),
            "k": np.array([10]),
            "excluded": np.empty((0, 2), np.int64),
            "candidates": np.empty((rows, 0), np.int64),
            "candidates_length": np.zeros(rows, np.int64),
        }
        feed = {name: value for name, value in feed.items() if name in self._takes}
        ids, scores = self._session.run(["recommendations", "scores"], feed)
        return list(zip(ids.tolist(), scores.tolist(), strict=True))


SERVICERS: dict[str, Callable[[api.RecommendResponse], Empty]] = {
    "generated": Empty,
    "lean": Empty,
    "least": Least,
    "naive": Naive,
}


def serve_empty(kind: str, port: int, reply: api.RecommendResponse) -> None:
    """Serve one of the other servicers; "lean" is the empty one with one method that is found by name."""

    async def main() -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        empty = SERVICERS[kind](reply)
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
def running(name: str, command: Sequence[str], port: int, log: Path) -> Iterator[Target]:
    """A server in a separate process that answers on `port`, until it is closed."""
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
    """Calls/s of all targets, in rounds; shares are of the last one, the empty servicer."""
    for in_flight in arguments.in_flight:
        rates: dict[str, list[float]] = {target.name: [] for target in targets}
        cpu: dict[str, list[float]] = {target.name: [] for target in targets}
        for number in range(arguments.rounds):
            for target in targets if number % 2 else reversed(targets):
                before = target.cpu_seconds()
                rates[target.name].append(target.load(body, arguments.calls, in_flight).calls_per_second)
                cpu[target.name].append((target.cpu_seconds() - before) / arguments.calls * 1e6)
        table = columns("calls/s", "share", "µs CPU a call", title=f"{in_flight} in flight")
        for name, values in rates.items():
            shares = [value / empty for value, empty in zip(values, rates[targets[-1].name], strict=True)]
            table.add_row(name, spread(values, ",.0f"), spread(shares, ".2f"), spread(cpu[name], ",.0f"))
        CONSOLE.print(table)


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
        with ExitStack() as stack:
            targets = [stack.enter_context(running("recommender", serve, port, log))]
            reply.write_bytes(ask(port).SerializeToString())
            for kind in (*arguments.beside, arguments.empty):
                port = free_port()
                command = [sys.executable, "-m", "bench.questions.overhead", "serve-empty", kind, str(port), str(reply)]
                name = "empty" if kind == arguments.empty else kind
                targets.append(stack.enter_context(running(name, command, port, Path(folder, f"log-{kind}"))))
            for target in targets:
                target.load(body, WARM_UP_CALLS, 32)
            throughput(targets, body, arguments)
            latency(targets, body, arguments.latency_rounds)
        for line in itertools.islice(reversed(log.read_text(encoding="utf-8").splitlines()), 1):
            stopped = json.loads(line)
            print({key: stopped.get(key) for key in ("answered", "rows_run", "runs")})


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve-empty"]:
        kind, port, reply = sys.argv[2:]
        serve_empty(kind, int(port), api.RecommendResponse.FromString(Path(reply).read_bytes()))
    else:
        main()
