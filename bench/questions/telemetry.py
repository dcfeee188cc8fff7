"""Cost of metrics and traces: CPU a call and calls/s, against the same server without, in interleaved rounds.

Every variant is a server in a process of its own; h2load (Debian: nghttp2-client) asks one after the other, in many
short rounds and an order that turns by one each; a round's share is one quotient. `off` stands in twice: what the
second one's share strays from 1 is what the machine does by itself. Shares of CPU are medians of pairs with their 95 %
bootstrap interval. Metrics are scraped once a second, fifteen times as
often as the configuration in deploy/ does. Spans go to a collector that takes and forgets them, in a process of its
own; CPU is the server's only.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import threading
import time
import timeit
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from bench.figures import interval, spread
from bench.questions.overhead import HISTORY, WARM_UP_CALLS, Target, running
from bench.serving import free_port
from recommender.edges.calls import Calls
from recommender.edges.grpc_aio.spans import Context, Serve, ServerSpans
from recommender.edges.method import Metadata
from recommender.observability.log import set_up_logging
from recommender.observability.tracing import Tracing
from recommender.recommend_api.v1 import recommend_api_pb2 as api


class Forgetful(grpc.GenericRpcHandler):
    """A collector that takes everything and keeps nothing."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Answer every method with an empty message."""
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")


def collect(port: int) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Forgetful(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def variants(edge: str, collector: int, metrics_port: int) -> dict[str, Mapping[str, str]]:
    """The environment of each variant, behind one edge."""
    traces = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector}"}
    ratio = {**traces, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
    metrics = {"RECOMMENDER_METRICS_PORT": str(metrics_port)}
    different = {
        "off": {},
        "off again": {},
        "metrics": metrics,
        "traces, 0 %": {**ratio, "OTEL_TRACES_SAMPLER_ARG": "0"},
        "traces, 1 %": {**ratio, "OTEL_TRACES_SAMPLER_ARG": "0.01"},
        "traces, 100 %": {**ratio, "OTEL_TRACES_SAMPLER_ARG": "1"},
    }
    return {name: {"RECOMMENDER_EDGE": edge, **environment} for name, environment in different.items()}


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Read the metrics once a second meanwhile."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                page.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--edge", choices=("grpc", "envoy"), default="grpc")
    arguments = parser.parse_args()
    recording(arguments.edge)

    request = api.RecommendRequest(item_ids=HISTORY).SerializeToString()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        body = Path(folder, "body")
        body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
        collector, metrics_port = free_port(), free_port()
        process = Popen([sys.executable, "-m", "bench.questions.telemetry", "collect", str(collector)])
        servers.callback(process.wait)
        servers.callback(process.terminate)
        targets: dict[str, Target] = {}
        for name, environment in variants(arguments.edge, collector, metrics_port).items():
            port = free_port()
            settings = [f"{key}={value}" for key, value in environment.items()]
            command = ["env", *settings, sys.executable, "-m", "recommender", "serve", "--port", str(port)]
            targets[name] = servers.enter_context(running(name, command, port, Path(folder, f"log {name}")))
        for target in targets.values():
            target.load(body, WARM_UP_CALLS, arguments.in_flight)
        servers.enter_context(scraped(metrics_port))
        measure(targets, body, arguments)


class Nowhere(SpanExporter):
    """Takes spans in the time that it takes to do nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        """All went well."""
        return SpanExportResult.SUCCESS


class Arrived:
    """As much of a call's context as gRPC's interceptor asks for."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = tuple(Pair(*pair) for pair in metadata)

    def invocation_metadata(self) -> tuple[Pair, ...]:
        """The caller's metadata."""
        return self._metadata

    def peer(self) -> str:
        """The caller's address."""
        return "ipv4:127.0.0.1:40000"


class Pair(NamedTuple):
    """A key of metadata with its value."""

    key: str
    value: str | bytes


def recording(edge: str) -> None:
    """Cost of a call's span and counts alone: the fastest of some tries, which has the least noise."""
    set_up_logging("info", "json")
    metadata = (("user-agent", "h2load"), ("te", "trailers"), ("x-request-id", "a-call"))
    unsampled = (*metadata, ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"))
    os.environ["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
    print("µs that recording takes of a call, without the wire:")
    for name, ratio, sent in (
        ("metrics and request id", None, metadata),
        ("and traces, 0 %", 0.0, metadata),
        ("and traces, 1 %", 0.01, metadata),
        ("and traces, 1 %, caller unsampled", 0.01, unsampled),
        ("and traces, 100 %", 1.0, metadata),
    ):
        serve = served(edge, ratio)
        context: Any = Arrived(sent)
        call = functools.partial(once, serve, context)
        took = timeit.repeat(call, timer=time.thread_time, number=2000, repeat=20)
        print(f"| {name} | {min(took) / 2000 * 1e6:.1f} |")


def once(serve: Serve[bytes, None], context: Context) -> None:
    """Call a method that waits for nothing."""
    next(serve(b"", context).__await__(), None)


def served(edge: str, ratio: float | None) -> Serve[bytes, None]:
    """A method that does nothing but be recorded, as the edge has it."""
    tracing = None
    if ratio is not None:
        os.environ["OTEL_TRACES_SAMPLER_ARG"] = str(ratio)
        tracing = Tracing(BatchSpanProcessor(Nowhere()), Resource({}), ratio=ratio, intercepted=edge == "grpc")
    calls = Calls(tracing)

    async def serve(_: bytes, context: Context) -> None:
        calls.begin("S/Recommend", context.invocation_metadata() or ()).end(0)

    return serve if tracing is None or edge != "grpc" else ServerSpans(tracing.sampling).around("S/Recommend", serve)


def measure(targets: Mapping[str, Target], body: Path, arguments: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in targets}
    cpu: dict[str, list[float]] = {name: [] for name in targets}
    names = list(targets)
    for number in range(arguments.rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            before = targets[name].cpu_seconds()
            rates[name].append(targets[name].load(body, arguments.calls, arguments.in_flight).calls_per_second)
            cpu[name].append((targets[name].cpu_seconds() - before) / arguments.calls * 1e6)
    print(f"{arguments.in_flight} in flight, {arguments.rounds} rounds of {arguments.calls} calls:")
    print("| variant | calls/s, median [least … most] | share of off | µs CPU a call, over all rounds | CPU by off |")
    for name in names:
        shares = [rate / off for rate, off in zip(rates[name], rates["off"], strict=True)]
        costs = [spent / off for spent, off in zip(cpu[name], cpu["off"], strict=True)]
        low, high = interval(costs)
        print(
            f"| {name} | {spread(rates[name])} | {spread(shares)} | {statistics.mean(cpu[name]):.0f} "
            f"| {statistics.median(costs):.3f} [{low:.3f} … {high:.3f}] |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"]:
        collect(int(sys.argv[2]))
    else:
        main()
