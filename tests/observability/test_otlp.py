"""What a collector gets of a server: metrics, the same id everywhere, and one warning when it is in trouble."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from recommender.client import Client
from recommender.observability import instruments as telemetry
from recommender.settings.otlp import Otlp
from tests.support.collector import attributes, collecting
from tests.support.observed import METHOD, PARENT, TIMEOUT, TRACE, Observed, recommend
from tests.support.process import Process, running
from tests.support.versions import K, write_version

UNDELIVERED = "telemetry cannot be delivered: it is dropped until it can"
RANDOM = "the model has random weights: it is the reference model, for trying the server out"


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

    # Without tokens and certificates no caller is counted by a token, and no file is watched.
    watched = {telemetry.CERTIFICATE_EXPIRY, telemetry.FILES_STALE}
    # Without a journal and a table of items there is nothing of theirs.
    catalogue = {telemetry.HIDDEN_BY_CALLS, telemetry.MOST_HIDDEN, telemetry.ITEM_ROWS, telemetry.ITEM_BYTES}
    catalogue |= {telemetry.ITEM_TABLES, telemetry.FILTERS, telemetry.EVICTED, telemetry.NEW_KEPT, telemetry.MOST_NEW}
    silent = {telemetry.TOKEN_REQUESTS, telemetry.TURNED_AWAY, *watched, *catalogue, *telemetry.OF_ENVOY}
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
            # The reference model has its own warning.
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
