"""A real collector takes what a server and a client send, over gRPC and over HTTP, and passes it on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from importlib.resources import files

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from tests.support.balanced import free_ports
from tests.support.collector import Collector, collecting
from tests.support.process import running

PATIENCE = 60.0
METHOD = "recommend_api.v1.RecommenderService/Recommend"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="rotel has no wheel there")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_rotel_gets_one_trace_from_client_to_run_and_deltas(protocol: str) -> None:
    grpc_port, http_port = free_ports(2)
    with collecting() as behind:
        rotel = await asyncio.create_subprocess_exec(
            str(files("rotel") / "rotel-agent"), "start",
            "--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}",
            "--exporter", "otlp", "--otlp-exporter-endpoint", f"http://127.0.0.1:{behind.port}",
            "--batch-timeout", "100ms",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await listening(grpc_port)
            settings = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{grpc_port if protocol == 'grpc' else http_port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
                "OTEL_METRIC_EXPORT_INTERVAL": "100",
            }
            await ask_once(settings, behind)
        finally:
            rotel.kill()
            await rotel.wait()

    (sent,) = behind.named(f"/{METHOD}")
    family = [*behind.named("recommender client"), *behind.named(METHOD), *behind.named("queue"), *behind.named("run")]
    assert [span.trace_id for span in family] == [sent.trace_id] * 4
    (batch,), (run,) = behind.named("batch"), behind.named("run")
    assert [link.span_id for link in run.links] == [batch.span_id]
    delta = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    assert behind.metrics["recommender.requests"].sum.aggregation_temporality == delta
    assert behind.metrics["rpc.server.call.duration"].histogram.aggregation_temporality == delta


async def ask_once(settings: dict[str, str], behind: Collector) -> None:
    async with running(settings=settings) as server:
        command = [sys.executable, "-m", "recommender", "client", "--trace", "--port", str(server.port), "--items", "1"]
        client = await asyncio.create_subprocess_exec(*command, env={**os.environ, **settings})
        assert await asyncio.wait_for(client.wait(), PATIENCE) == 0
        names = (f"/{METHOD}", METHOD, "queue", "run", "batch", "recommender client")
        await asyncio.to_thread(
            behind.until,
            lambda: all(behind.named(name) for name in names) and "rpc.server.call.duration" in behind.metrics,
        )
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0


async def listening(port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
