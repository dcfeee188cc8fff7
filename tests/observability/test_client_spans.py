"""A caller's trace continues in the server: by `recommender.client`, and by `recommender client --trace`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from recommender.client import Client, Request, SyncClient
from tests.support.balanced import free_ports
from tests.support.collector import attributes, collecting
from tests.support.process import running
from tests.support.serving import AnyServer

TIMEOUT = 30.0
METHOD = "recommend_api.v1.RecommenderService/Recommend"
STREAM = "recommend_api.v1.RecommenderService/StreamRecommend"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the process's tracer provider exports. It could be set but once, and would trace the tests after this."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


async def drain(answers: AsyncIterator[object]) -> None:
    async for _ in answers:
        pass


def named(span: ReadableSpan) -> tuple[object, ...]:
    """System, method, status and error under the stable names."""
    said = span.attributes or {}
    return tuple(said.get(name) for name in ("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"))


def only(exported: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exported.get_finished_spans()
    return span


async def test_each_call_is_a_client_span_under_both_names(exported: InMemorySpanExporter, server: AnyServer) -> None:
    async with Client(f"127.0.0.1:{server.port}") as client:
        answer = await client.recommend([1], timeout=TIMEOUT, request_id="mine")

    assert answer.request_id == "mine"
    span = only(exported)
    assert (span.name, span.kind) == (f"/{METHOD}", trace.SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": METHOD.partition("/")[0],
        "rpc.method": METHOD,
        "rpc.grpc.status_code": 0,
        "rpc.system.name": "grpc",
        "rpc.response.status_code": "OK",
    }


async def test_a_failed_call_says_so(exported: InMemorySpanExporter, server: AnyServer) -> None:
    async with Client(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.recommend([-1], timeout=TIMEOUT)

    span = only(exported)
    said = dict(span.attributes or {})
    assert (said["rpc.response.status_code"], said["error.type"]) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert span.status.status_code is trace.StatusCode.ERROR


async def test_a_stream_is_one_span(exported: InMemorySpanExporter, server: AnyServer) -> None:
    async def requests() -> object:
        for item in range(3):
            yield Request(item_ids=[item])

    async with Client(f"127.0.0.1:{server.port}") as client:
        answers = [place async for place, _ in client.stream(requests(), timeout=TIMEOUT)]  # type: ignore[arg-type]

    assert sorted(answers) == [0, 1, 2]
    span = only(exported)
    assert span.name == f"/{STREAM}"
    assert named(span) == ("grpc", STREAM, "OK", None)


async def test_a_stream_that_fails_says_so(exported: InMemorySpanExporter) -> None:
    async def requests() -> AsyncIterator[Request]:
        yield Request(item_ids=[1])

    (port,) = free_ports(1)
    async with Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await drain(client.stream(requests(), timeout=TIMEOUT))

    span = only(exported)
    assert named(span) == ("grpc", STREAM, "UNAVAILABLE", "UNAVAILABLE")
    assert span.status.status_code is trace.StatusCode.ERROR


async def test_a_stream_that_its_caller_leaves_is_cancelled(exported: InMemorySpanExporter, server: AnyServer) -> None:
    async def requests() -> AsyncIterator[Request]:
        yield Request(item_ids=[1])
        await asyncio.Event().wait()

    async with Client(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(drain(client.stream(requests(), timeout=TIMEOUT)), 0.1)

    span = only(exported)
    assert named(span)[2:] == ("CANCELLED", "CANCELLED")
    assert span.status.status_code is trace.StatusCode.ERROR


@pytest.mark.parametrize(("item", "status", "error"), [(1, "OK", None), (-1, "INVALID_ARGUMENT", "INVALID_ARGUMENT")])
async def test_the_synchronous_client_traces_as_well(
    exported: InMemorySpanExporter, server: AnyServer, item: int, status: str, error: str | None
) -> None:
    def ask() -> None:
        with SyncClient(f"127.0.0.1:{server.port}") as client, suppress(grpc.RpcError):
            client.recommend([item], timeout=TIMEOUT)

    await asyncio.to_thread(ask)

    assert named(only(exported)) == ("grpc", METHOD, status, error)


async def test_a_call_that_its_caller_leaves_is_cancelled(exported: InMemorySpanExporter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Client(f"127.0.0.1:{silent.getsockname()[1]}") as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.recommend([1], timeout=TIMEOUT), 0.1)

    assert named(only(exported)) == ("grpc", METHOD, "CANCELLED", "CANCELLED")


@pytest.mark.parametrize("edge", ["grpc", "envoy"])
async def test_the_command_shows_one_trace_from_the_client_to_the_run(edge: str) -> None:
    with collecting() as collector:
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        async with running(settings={**settings, "RECOMMENDER_EDGE": edge}) as server:
            command = [sys.executable, "-m", "recommender", "client", "--trace", "--port", str(server.port)]
            process = await asyncio.create_subprocess_exec(
                *command, "--items", "1", env={**os.environ, **settings}, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, told = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0
            await asyncio.to_thread(collector.until, lambda: collector.named("run") and collector.named(f"/{METHOD}"))

    trace_id = told.decode().split()[1]
    (asked,) = collector.named("recommender client")
    (sent,) = collector.named(f"/{METHOD}")
    (call,) = collector.named(METHOD)
    (queue,) = collector.named("queue")
    (run,) = collector.named("run")
    for span, parent in ((sent, asked), (call, sent), (queue, call), (run, call)):
        assert (span.trace_id.hex(), span.parent_span_id) == (trace_id, parent.span_id)
    (batch,) = collector.named("batch")
    assert [link.span_id for link in run.links] == [batch.span_id]
    assert attributes(sent.attributes)["rpc.response.status_code"] == "OK"
