"""What reaches a collector over HTTP and over gRPC, and exemplars in a scrape."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import signal
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from recommender.client import Client
from recommender.recommend_api.v1.recommend_api_pb2 import RecommendRequest
from tests.support.collector import attributes, collecting
from tests.support.otlp_http import HttpCollector, collecting_http
from tests.support.process import Process, running
from tests.support.versions import K, write_version

TIMEOUT = 30.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METHOD = "/recommend_api.v1.RecommenderService/Recommend"
QUICK = {"OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BLRP_SCHEDULE_DELAY": "50"}


def over_http(collector: HttpCollector, scheme: str = "http") -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{scheme}://127.0.0.1:{collector.port}",
        "OTEL_LOGS_EXPORTER": "otlp",
        **QUICK,
    }


async def ask(server: Process, calls: int = 1) -> None:
    # Each of several workers says the same.
    address = next(event["address"] for event in server.log if event["event"] == "listening")
    async with Client(address) as client:
        await asyncio.gather(*(client.recommend([1], timeout=TIMEOUT) for _ in range(calls)))


async def stop(server: Process) -> None:
    server.signal(signal.SIGTERM)
    assert await server.exit_code() == 0


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():  # noqa: ASYNC110 (of another thread)
            await asyncio.sleep(0.01)


def scraped(address: str) -> str:
    asked = urllib.request.Request(address, headers={"Accept": "application/openmetrics-text"})  # noqa: S310
    with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:  # noqa: S310 (our own server)
        return str(answer.read().decode())


def spans(collector: HttpCollector) -> list[Any]:
    return [
        span
        for message in collector.of("traces")
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def collected(collector: HttpCollector) -> list[Any]:
    """Each sending of each metric, in order."""
    return [
        metric
        for message in collector.of("metrics")
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


def metrics(collector: HttpCollector, name: str) -> list[Any]:
    """Each sending of a metric, in order."""
    return [metric for metric in collected(collector) if metric.name == name]


def records(collector: HttpCollector) -> list[Any]:
    return [
        record
        for message in collector.of("logs")
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


async def test_all_signals_go_over_http_as_the_variables_say() -> None:
    with collecting_http() as collector:
        settings = {
            **over_http(collector),
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "deflate",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.instance.id=pod-1",
            "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process",
        }
        async with running("--log-level", "debug", settings=settings) as server:
            await ask(server)
            await until(lambda: any(record.body.string_value == "call" for record in records(collector)))
            await stop(server)

    assert all(path in {"/v1/traces", "/v1/metrics", "/v1/logs"} for path, _, _ in collector.requests)
    assert all(headers["authorization"] == "Bearer abc" for _, headers, _ in collector.requests)
    assert {headers["content-encoding"] for headers in collector.headers("traces")} == {"gzip"}
    assert {headers["content-encoding"] for headers in collector.headers("metrics")} == {"deflate"}
    resource = attributes(collector.of("traces")[0].resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["deployment.environment"]) == ("shop", "test")
    assert resource["service.instance.id"] == "pod-1"
    assert "process.pid" in resource

    (call,) = (span for span in spans(collector) if span.name == METHOD[1:])
    (line,) = (record for record in records(collector) if record.body.string_value == "call")
    assert (line.trace_id, line.span_id) == (call.trace_id, call.span_id)
    assert line.severity_text == "debug"
    assert attributes(line.attributes)["status"] == "OK"
    (ready,) = (record for record in records(collector) if record.body.string_value == "ready")
    assert not ready.trace_id
    assert records(collector)[-1].body.string_value == "stopped"


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_all_signals_go_over_grpc_as_the_variables_say(compression: str) -> None:
    with collecting() as collector:
        settings = {
            **QUICK,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc",
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "OTEL_LOGS_EXPORTER": "otlp",
        }
        async with running("--log-level", "debug", settings=settings) as server:
            await ask(server)
            await asyncio.to_thread(
                collector.until, lambda: any(record.body.string_value == "call" for record in collector.records)
            )
            await stop(server)

    assert {metadata["authorization"] for metadata in collector.metadata} == {"Bearer abc"}
    (call,) = collector.named(METHOD[1:])
    (line,) = (record for record in collector.records if record.body.string_value == "call")
    assert (line.trace_id, line.span_id) == (call.trace_id, call.span_id)
    assert "rpc.server.call.duration" in collector.metrics


async def test_deltas_are_sent_as_deltas() -> None:
    with collecting_http() as collector:
        settings = {**over_http(collector), "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
        async with running(settings=settings) as server:
            for _ in range(3):
                before = len(metrics(collector, "process.uptime"))
                await ask(server, calls=5)
                await until(lambda: len(metrics(collector, "process.uptime")) > before + 1)  # noqa: B023
            await stop(server)

    answered = metrics(collector, "recommender.requests")
    durations = metrics(collector, "rpc.server.call.duration")
    delta = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    assert {each.sum.aggregation_temporality for each in answered} == {delta}
    assert {each.histogram.aggregation_temporality for each in durations} == {delta}
    requests = [point for each in answered for point in each.sum.data_points]
    counted = sum(
        point.as_int for point in requests if attributes(point.attributes)["recommender.outcome"] == "answered"
    )
    assert counted == 15
    points = [point for each in durations for point in each.histogram.data_points]
    assert sum(point.count for point in points) == sum(sum(point.bucket_counts) for point in points) == 15
    assert max(point.count for point in points) < 15
    assert all(after.start_time_unix_nano >= earlier.time_unix_nano for earlier, after in itertools.pairwise(points))
    # What goes up and down is a state in every temporality.
    waiting = metrics(collector, "recommender.backlog.length")
    assert all(each.sum.aggregation_temporality != delta for each in waiting)


async def test_histograms_are_exponential_where_preferred() -> None:
    with collecting_http() as collector:
        settings = {
            **over_http(collector),
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram",
        }
        async with running(settings=settings) as server:
            await ask(server, calls=20)
            await stop(server)

    (duration,) = metrics(collector, "rpc.server.call.duration")[-1].exponential_histogram.data_points
    assert duration.count == sum(duration.positive.bucket_counts) == 20
    base = 2 ** (2**-duration.scale)
    least = base**duration.positive.offset
    most = base ** (duration.positive.offset + len(duration.positive.bucket_counts))
    assert least / 3 < duration.sum / duration.count < most
    (sizes,) = metrics(collector, "recommender.batch.size")[-1].exponential_histogram.data_points
    assert sizes.count > 0
    assert sizes.sum == 20


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_bucket_of_durations_leads_to_a_trace(workers: str) -> None:
    with collecting_http() as collector:
        settings = {**over_http(collector), "RECOMMENDER_METRICS_PORT": "0", "RECOMMENDER_WORKERS": workers}
        async with running(settings=settings, wait_for=None) as server:
            while "worker" in (told := await server.until("metrics")):
                pass  # a worker's own endpoint
            address = told["address"]
            while sum(event["event"] == "ready" for event in server.log) < int(workers):
                await server.until("ready")
            await ask(server)
            await until(lambda: spans(collector))
            page = ""
            async with asyncio.timeout(TIMEOUT):
                while "rpc_server_call_duration_seconds_bucket" not in page:  # a worker's port is known a moment later
                    page = await asyncio.to_thread(scraped, address)
            await stop(server)

    (call,) = (span for span in spans(collector) if span.name == METHOD[1:])
    found = re.findall(
        r'^rpc_server_call_duration_seconds_bucket\{.*\} 1(?:\.0)? # \{span_id="(\w+)",trace_id="(\w+)"\} ([\d.e-]+) ',
        page,
        re.MULTILINE,
    )
    assert [(span, trace) for span, trace, _ in found] == [(call.span_id.hex(), call.trace_id.hex())]
    exemplars = [
        exemplar
        for each in metrics(collector, "rpc.server.call.duration")
        for point in each.histogram.data_points
        for exemplar in point.exemplars
    ]
    assert [exemplar.trace_id for exemplar in exemplars] == [call.trace_id], "it is sent once"
    assert exemplars[0].as_double == pytest.approx(float(found[0][2]))


@pytest.mark.parametrize("name", ["b3", "b3multi"])
async def test_a_trace_goes_on_from_zipkins_headers(name: str) -> None:
    carrier = (
        [("b3", f"{TRACE}-{PARENT}-1")]
        if name == "b3"
        else [("x-b3-traceid", TRACE), ("x-b3-spanid", PARENT), ("x-b3-sampled", "1")]
    )
    with collecting_http() as collector:
        settings = {**over_http(collector), "OTEL_PROPAGATORS": name}
        async with (
            running(settings=settings) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            method: Any = channel.unary_unary(METHOD)
            await method(RecommendRequest(item_ids=[1]).SerializeToString(), metadata=carrier, timeout=TIMEOUT)
            await stop(server)

    (call,) = (span for span in spans(collector) if span.name == METHOD[1:])
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)


async def test_a_collector_is_asked_for_its_certificate_and_shown_ours(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours = authority.issue_cert("client.example")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    with collecting_http(tls) as collector:
        settings = {
            **over_http(collector, "https"),
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(tmp_path / "key.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(tmp_path / "chain.pem"),
            # Where the tests run these may be set, and the HTTP client would take them instead.
            "REQUESTS_CA_BUNDLE": "",
            "CURL_CA_BUNDLE": "",
        }
        async with running(settings=settings) as server:
            await ask(server)
            await until(lambda: collector.of("traces") and collector.of("metrics") and collector.of("logs"))
            await stop(server)


async def test_a_worker_is_part_of_the_identity() -> None:
    with collecting_http() as collector:
        settings = {
            **over_http(collector),
            "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-1",
            "RECOMMENDER_WORKERS": "2",
        }

        def identities() -> set[object]:
            return {
                attributes(message.resource_metrics[0].resource.attributes)["service.instance.id"]
                for message in collector.of("metrics")
            }

        async with running(settings=settings) as server:
            await until(lambda: len(identities()) > 1)
            await stop(server)

    assert identities() == {"pod-1-0", "pod-1-1"} or identities() == {"pod-1-1", "pod-1-2"}


async def test_a_version_that_comes_back_never_makes_a_delta_negative(tmp_path: Path) -> None:
    write_version(tmp_path / "shop" / "1", 1)
    with collecting_http() as collector:
        settings = {
            **over_http(collector),
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
            "RECOMMENDER_MODEL": str(tmp_path / "shop"),
            "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
            "RECOMMENDER_MODEL_POLL_MS": "50",
        }

        def answered() -> dict[object, list[int]]:
            """What was sent, by version."""
            found: dict[object, list[int]] = {}
            for metric in metrics(collector, "recommender.requests"):
                for point in metric.sum.data_points:
                    told = attributes(point.attributes)
                    if told["recommender.outcome"] == "answered":
                        found.setdefault(told["recommender.model"], []).append(point.as_int)
            return found

        async with running(settings=settings) as server:
            await ask(server, calls=20)
            await until(lambda: sum(answered().get("shop@1", ())) == 20)
            write_version(tmp_path / "shop" / "2", 2)
            await server.until("version retired")
            await ask(server, calls=3)
            await until(lambda: sum(answered().get("shop@2", ())) == 3)
            shutil.rmtree(tmp_path / "shop" / "2")
            await server.until("version retired")
            await ask(server, calls=5)
            await stop(server)

    assert min(count for counts in answered().values() for count in counts) >= 0
    assert {version: sum(counts) for version, counts in answered().items()} == {"shop@1": 25, "shop@2": 3}
    sums = [point for metric in collected(collector) for point in metric.sum.data_points if metric.sum.is_monotonic]
    assert min(min(point.as_int, point.as_double) for point in sums) >= 0
    sizes: dict[object, int] = {}
    for metric in metrics(collector, "recommender.batch.size"):
        for point in metric.histogram.data_points:
            told = attributes(point.attributes)["recommender.model"]
            sizes[told] = sizes.get(told, 0) + round(point.sum)
    assert sizes == {"shop@1": 25, "shop@2": 3}


async def test_what_a_version_did_since_the_last_sending_is_sent_after_it_left(tmp_path: Path) -> None:
    write_version(tmp_path / "shop" / "1", 1)
    with collecting_http() as collector:
        settings = {
            **over_http(collector),
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            "RECOMMENDER_MODEL": str(tmp_path / "shop"),
            "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
            "RECOMMENDER_MODEL_POLL_MS": "50",
        }
        async with running(settings=settings) as server:
            await ask(server, calls=20)
            write_version(tmp_path / "shop" / "2", 2)
            await server.until("version retired")
            await stop(server)

    (requests,) = metrics(collector, "recommender.requests")
    answered = {
        told["recommender.model"]: point.as_int
        for point in requests.sum.data_points
        if (told := attributes(point.attributes))["recommender.outcome"] == "answered"
    }
    assert answered == {"shop@1": 20, "shop@2": 0}
    (serving,) = metrics(collector, "recommender.model.info")
    assert [attributes(point.attributes)["recommender.model"] for point in serving.gauge.data_points] == ["shop@2"]
