"""What a collector gets of a server: spans with their family and links, metrics, and the same id everywhere."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import use_span

from recommender.client import Client
from recommender.client import Request as ClientRequest
from recommender.observability import instruments as telemetry
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server.server import Server
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings
from tests.support.collector import Collector, attributes, collecting
from tests.support.paths import WEIGHTS
from tests.support.process import Process, running
from tests.support.versions import K, write_version

TIMEOUT = 30.0
METHOD = "recommend_api.v1.RecommenderService/Recommend"
UNDELIVERED = "telemetry cannot be delivered: it is dropped until it can"
RANDOM = "the model has random weights: it is the reference model, for trying the server out"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

Observed: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[Collector, Server, grpc.aio.Channel]]]


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """A server in this process that sends to a collector; what it holds back is sent when it stops."""

    @asynccontextmanager
    async def started(
        variables: dict[str, str] | None = None, **settings: Any
    ) -> AsyncIterator[tuple[Collector, Server, grpc.aio.Channel]]:
        with collecting() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
            for key, text in (variables or {}).items():
                monkeypatch.setenv(key, text)
            server = Server(Settings.model_validate({"port": 0, "weights_dir": WEIGHTS, **settings}), otlp=Otlp.load())
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                    yield collector, server, channel
            finally:
                await server.close()

    return started


async def recommend(
    channel: grpc.aio.Channel, *metadata: tuple[str, str], item: int = 1
) -> tuple[api.RecommendResponse, dict[str, str | bytes]]:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{METHOD}")
    call = method(api.RecommendRequest(item_ids=[item]).SerializeToString(), metadata=metadata, timeout=TIMEOUT)
    reply = api.RecommendResponse.FromString(await call)
    return reply, dict(await call.trailing_metadata())


async def test_a_call_is_a_span_in_its_callers_trace_with_its_queue_and_its_run(observed: Observed) -> None:
    async with observed() as (collector, server, channel):
        await recommend(channel, ("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "mine"))

    (call,) = collector.named(METHOD)
    (queue,) = collector.named("queue")
    (run,) = collector.named("run")
    (batch,) = collector.named("batch")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.kind == Span.SPAN_KIND_SERVER
    assert call.status.code == Status.STATUS_CODE_UNSET
    for child in (queue, run):
        assert (child.trace_id, child.parent_span_id) == (call.trace_id, call.span_id)
    assert call.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert abs(run.start_time_unix_nano - queue.end_time_unix_nano) < 1e6
    assert run.end_time_unix_nano <= call.end_time_unix_nano

    said = attributes(call.attributes)
    waited, ran = said.pop(telemetry.WAIT), said.pop(telemetry.RUN)
    assert isinstance(waited, float)
    assert isinstance(ran, float)
    assert 0 < waited + ran < (call.end_time_unix_nano - call.start_time_unix_nano) / 1e9
    assert str(said.pop("rpc.user_agent")).startswith("grpc-python-asyncio/")
    assert said.pop("net.peer.port")
    assert said == {
        "rpc.system": "grpc",
        "rpc.service": METHOD.rpartition("/")[0],
        "rpc.grpc.status_code": 0,
        "net.peer.ip": "127.0.0.1",
        "net.peer.name": "localhost",
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "recommender.request_id": "mine",
        "recommender.model.name": "reference",
        "recommender.model.version": "1",
        "recommender.batch.id": 1,
        "recommender.batch.size": 1,
        "recommender.batch.count": 1,
    }
    assert batch.trace_id != call.trace_id, "a batch belongs to none of its callers"
    assert [(link.trace_id, link.span_id) for link in batch.links] == [(call.trace_id, call.span_id)]
    assert [(link.trace_id, link.span_id) for link in run.links] == [(batch.trace_id, batch.span_id)]
    assert attributes(batch.attributes) | {"recommender.batch.cells": 1} == attributes(batch.attributes)
    assert collector.resource["service.name"] == "recommender"
    assert server.metrics_port == 0


async def test_a_batch_links_to_every_sampled_call_in_it_and_to_no_other(observed: Observed) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    async with observed(sampler) as (collector, server, channel):
        parents = [(f"{row + 1:032x}", row % 2) for row in range(64)]
        await asyncio.gather(
            *(recommend(channel, ("traceparent", f"00-{trace}-{PARENT}-0{flag}")) for trace, flag in parents),
            *(recommend(channel) for _ in range(10)),
        )
        statistics = server.batcher.statistics()

    wanted = {trace for trace, flag in parents if flag}
    calls = {span.span_id: span for span in collector.named(METHOD)}
    assert sorted(span.trace_id.hex() for span in calls.values()) == sorted(wanted)
    links = [link.span_id for batch in collector.named("batch") for link in batch.links]
    assert sorted(links) == sorted(calls)
    for batch in collector.named("batch"):
        about = attributes(batch.attributes)
        for link in batch.links:
            call = attributes(calls[link.span_id].attributes)
            assert call["recommender.batch.id"] == about["recommender.batch.id"]
            assert call["recommender.batch.size"] == about["recommender.batch.size"]
    assert statistics.answered == 74


async def test_a_ratio_samples_about_that_many_and_the_rest_leaves_no_span(observed: Observed) -> None:
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    async with observed(variables) as (collector, _, channel):
        for _ in range(4):
            await asyncio.gather(*(recommend(channel) for _ in range(100)))

    calls = collector.named(METHOD)
    assert 60 < len(calls) < 140
    assert len({span.trace_id for span in calls}) == len(calls)
    assert all(int.from_bytes(span.trace_id[8:], "big") < 0.25 * 2**64 for span in calls)
    assert len(collector.named("run")) == len(calls)


async def test_a_call_of_many_has_a_run_for_each_of_its_batches(observed: Observed) -> None:
    async with observed(max_batch_size=8) as (collector, server, _), Client(f"127.0.0.1:{server.port}") as client:
        await client.recommend_many([ClientRequest(item_ids=[row]) for row in range(40)], timeout=TIMEOUT)

    (call,) = collector.named("recommend_api.v1.RecommenderService/BatchRecommend")
    batches = collector.named("batch")
    assert attributes(call.attributes)["recommender.batch.count"] == len(batches) >= 5
    assert len(collector.named("run")) == len(collector.named("queue")) == len(batches)
    assert all([link.span_id for link in batch.links] == [call.span_id] for batch in batches)


async def test_a_span_around_the_start_of_a_server_is_no_part_of_its_calls(observed: Observed) -> None:
    around = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("around")
    with use_span(around):
        async with observed({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}) as (collector, _, channel):
            await recommend(channel)

    assert not collector.spans
    assert isinstance(around, ReadableSpan)
    assert not around.attributes


async def test_a_call_that_fails_says_so(observed: Observed) -> None:
    async with observed() as (collector, _, channel):
        with pytest.raises(grpc.aio.AioRpcError):
            await recommend(channel, item=-1)

    (call,) = collector.named(METHOD)
    said = attributes(call.attributes)
    assert (said["rpc.response.status_code"], said["rpc.grpc.status_code"]) == ("INVALID_ARGUMENT", 3)
    assert "error.type" not in said, "the caller's fault is no error of the server"
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert not call.events, "a status is no exception"
    assert not collector.named("batch")


async def test_a_call_that_fails_by_our_fault_is_an_error(observed: Observed) -> None:
    async with observed() as (collector, server, channel):
        await server.batcher.close()
        with pytest.raises(grpc.aio.AioRpcError):
            await recommend(channel)

    (call,) = collector.named(METHOD)
    said = attributes(call.attributes)
    assert (said["error.type"], said["rpc.grpc.status_code"]) == ("UNAVAILABLE", 14)
    assert call.status.code == Status.STATUS_CODE_ERROR
    assert not call.events


async def test_a_stream_is_a_span_and_its_runs_are_in_it(observed: Observed) -> None:
    async def requests() -> AsyncIterator[ClientRequest]:
        for row in range(3):
            yield ClientRequest(item_ids=[row])

    async with observed() as (collector, server, _), Client(f"127.0.0.1:{server.port}") as client:
        assert len([answer async for answer in client.stream(requests(), timeout=TIMEOUT)]) == 3

    (call,) = collector.named("recommend_api.v1.RecommenderService/StreamRecommend")
    assert attributes(call.attributes)["rpc.response.status_code"] == "OK"
    assert {run.parent_span_id for run in collector.named("run")} == {call.span_id}


async def test_a_call_whose_caller_leaves_is_cancelled_by_both_names(observed: Observed) -> None:
    async with observed({"OTEL_BSP_SCHEDULE_DELAY": "20"}) as (collector, _, channel):
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/recommend_api.v1.RecommenderService/StreamRecommend"
        )
        call = stream(timeout=TIMEOUT)
        await call.write(api.StreamRecommendRequest(request=api.RecommendRequest(item_ids=[1])).SerializeToString())
        await call.read()
        call.cancel()
        await asyncio.to_thread(
            collector.until, lambda: collector.named("recommend_api.v1.RecommenderService/StreamRecommend")
        )

    (span,) = collector.named("recommend_api.v1.RecommenderService/StreamRecommend")
    said = attributes(span.attributes)
    assert (said["rpc.response.status_code"], said["rpc.grpc.status_code"]) == ("CANCELLED", 1)
    assert span.status.code == Status.STATUS_CODE_UNSET


async def test_metrics_are_those_that_a_scrape_sees(observed: Observed) -> None:
    async with observed({"OTEL_METRIC_EXPORT_INTERVAL": "50", "OTEL_SERVICE_NAME": "shop"}) as (collector, _, channel):
        await asyncio.gather(*(recommend(channel) for _ in range(20)))
        await asyncio.to_thread(
            collector.until,
            lambda: any(
                point.count == 20
                for point in collector.metrics.get("rpc.server.call.duration", no_metric()).histogram.data_points
            ),
        )

    # Without tokens and certificates nobody is counted by a token, and no file is watched.
    watched = {telemetry.CERTIFICATE_EXPIRY, telemetry.FILES_STALE}
    silent = {telemetry.TOKEN_REQUESTS, telemetry.TURNED_AWAY, *watched, *telemetry.OF_ENVOY}
    expected = [each for each in telemetry.INSTRUMENTS if each not in silent]
    assert set(collector.metrics) == {each.name for each in expected}
    for each in expected:
        sent = collector.metrics[each.name]
        kind = {"gauge": "gauge", "histogram": "histogram"}.get(each.kind, "sum")
        assert (sent.WhichOneof("data"), sent.unit, sent.description) == (kind, each.unit, each.meaning)
        points = getattr(sent, kind).data_points
        assert {tuple(attributes(point.attributes)) for point in points} == {each.attributes}
        if kind == "sum":
            assert sent.sum.is_monotonic is (each.kind == "counter")
        if kind == "histogram":
            assert all(tuple(point.explicit_bounds) == each.bounds for point in points)
            assert all(sum(point.bucket_counts) == point.count for point in points)
    assert collector.resource["service.name"] == "shop"


async def test_what_a_server_sends_when_it_stops_has_all_that_its_models_have_done(observed: Observed) -> None:
    async with observed({"OTEL_METRIC_EXPORT_INTERVAL": "3600000"}) as (collector, _, channel):
        await asyncio.gather(*(recommend(channel) for _ in range(20)))
        assert "recommender.requests" not in collector.metrics, "nothing is due for an hour"

    answered = [
        point.as_int
        for point in collector.metrics["recommender.requests"].sum.data_points
        if attributes(point.attributes)["recommender.outcome"] == "answered"
    ]
    assert answered == [20]


@pytest.mark.parametrize("edge", ["grpc", "envoy"])
async def test_on_every_edge_the_same_id_is_in_the_reply_its_metadata_the_log_and_the_span(edge: str) -> None:
    with collecting() as collector:
        endpoint = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "RECOMMENDER_EDGE": edge,
        }
        async with (
            running("--log-level", "debug", settings=endpoint) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            reply, trailing = await recommend(channel, ("traceparent", f"00-{TRACE}-{PARENT}-01"))
            logged = await server.until("call")
            async with asyncio.timeout(TIMEOUT):
                while telemetry.CALL_DURATION.name not in collector.metrics:  # noqa: ASYNC110 (of another thread)
                    await asyncio.sleep(0.01)
            await stop(server)

    sent = {instrument.name for instrument in telemetry.OF_ENVOY} & set(collector.metrics)
    assert sent == ({instrument.name for instrument in telemetry.OF_ENVOY} if edge == "envoy" else set())
    (call,) = collector.named(METHOD)
    assert trailing["x-request-id"] == reply.request_id == logged["request_id"]
    assert attributes(call.attributes)["recommender.request_id"] == reply.request_id
    assert (logged["trace_id"], logged["span_id"]) == (call.trace_id.hex(), call.span_id.hex())
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    (batch,) = collector.named("batch")
    assert [link.span_id for link in batch.links] == [call.span_id]
    assert [span.parent_span_id for span in collector.named("run")] == [call.span_id]


@pytest.mark.parametrize("edge", ["grpc", "envoy"])
@pytest.mark.parametrize("trouble", ["down", "refuses", "dawdles"])
async def test_a_collector_in_trouble_is_one_warning_and_nobody_elses(tmp_path: Path, trouble: str, edge: str) -> None:
    with collecting() as collector:
        settings = {
            # The reference model has a warning of its own.
            "RECOMMENDER_MODEL": str(write_version(tmp_path / "shop" / "1", 1).parent),
            "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{1 if trouble == 'down' else collector.port}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BSP_MAX_QUEUE_SIZE": "64",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
            "RECOMMENDER_EDGE": edge,
        }
        if trouble == "refuses":
            collector.refusal = grpc.StatusCode.PERMISSION_DENIED
        if trouble == "dawdles":
            collector.gate.clear()
        async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
            warned = asyncio.create_task(warning(server))
            rounds = 0
            while not warned.done() or rounds < 20:
                await asyncio.gather(*(client.recommend([1], timeout=TIMEOUT) for _ in range(50)))
                rounds += 1
            collector.gate.set()
            await stop(server)
        if trouble == "dawdles":
            # Of thousands of spans it has held no more than the queue, and what each attempt takes from there.
            assert len(collector.spans) <= 64 + 16 * collector.attempts < rounds * 150

    warnings = [event for event in server.log if event["level"] not in {"info", "debug"} and event["event"] != RANDOM]
    assert [event["event"] for event in warnings] == [UNDELIVERED]
    (warned_of,) = warnings
    assert warned_of["endpoint"] == settings["OTEL_EXPORTER_OTLP_ENDPOINT"].removeprefix("http://")
    reasons = {"down": "Connection refused", "refuses": "not now", "dawdles": "Deadline Exceeded"}
    assert reasons[trouble] in warned_of["reason"]
    (stopped,) = (event for event in server.log if event["event"] == "stopped")
    assert stopped["answered"] == rounds * 50
    assert stopped["given_up"] == 0


async def test_a_stop_waits_two_seconds_for_all_signals_together() -> None:
    with collecting() as collector:
        collector.gate.clear()
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
            await client.recommend([1], timeout=TIMEOUT)
            await asyncio.to_thread(collector.until, lambda: collector.attempts > 1)
            await stop(server)

    (stopped,) = (event for event in server.log if event["event"] == "stopped")
    assert 1 < stopped["seconds"] < 3, "spans and metrics were waited for, side by side"


async def test_a_collector_that_comes_back_gets_what_is_sent_from_then_on() -> None:
    with collecting() as collector:
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        collector.refusal = grpc.StatusCode.PERMISSION_DENIED
        async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
            await client.recommend([1], timeout=TIMEOUT, request_id="lost")
            await server.until(UNDELIVERED)
            collector.refusal = None
            await client.recommend([1], timeout=TIMEOUT, request_id="found")
            await server.until("telemetry is delivered again")
            await stop(server)

    ids = [attributes(span.attributes)["recommender.request_id"] for span in collector.named(METHOD)]
    assert ids == ["found"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Otlp()),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, Otlp(traces="grpc")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, Otlp(traces="grpc", metrics="grpc")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, Otlp(metrics="grpc")),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, Otlp(logs="grpc")),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.1",
            },
            Otlp(traces="grpc", ratio=0.1),
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "always_off"}, Otlp(traces="grpc", ratio=0.0)),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
            },
            Otlp(traces="http/protobuf", metrics="grpc"),
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, Otlp()),
    ],
)
def test_an_endpoint_turns_telemetry_on(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Otlp
) -> None:
    for key, text in variables.items():
        monkeypatch.setenv(key, text)

    assert Otlp.load() == expected


async def warning(server: Process) -> None:
    """Wait for the warning, which may have come before the server was ready."""
    if not any(event["event"] == UNDELIVERED for event in server.log):
        await server.until(UNDELIVERED)


def no_metric() -> Any:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric  # noqa: PLC0415

    return Metric()


async def stop(server: Process) -> None:
    server.signal(signal.SIGTERM)
    assert await server.exit_code() == 0
