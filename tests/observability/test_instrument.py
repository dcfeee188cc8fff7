"""Users who run `opentelemetry-instrument recommender serve` get one span a call."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from recommender.client import Client
from tests.support.collector import collecting
from tests.support.paths import WEIGHTS
from tests.support.process import Process

TIMEOUT = 30.0


@pytest.mark.parametrize("sampler", ["parentbased_always_on", "parentbased_always_off"])
async def test_an_instrumented_server_has_one_span_a_call(sampler: str) -> None:
    with collecting() as collector:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_TRACES_SAMPLER": sampler,
            "OTEL_LOGS_EXPORTER": "none",
            "RECOMMENDER_PORT": "0",
            "RECOMMENDER_WEIGHTS_DIR": str(WEIGHTS),
        }
        program = Path(sys.executable).with_name("opentelemetry-instrument")
        process = await asyncio.create_subprocess_exec(
            program, sys.executable, "-m", "recommender", "serve",
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        server = Process(process)
        try:
            await server.until("ready")
            async with Client(f"127.0.0.1:{server.port}") as client:
                await asyncio.gather(*(client.recommend([1], timeout=TIMEOUT) for _ in range(5)))
                await client.list_models(timeout=TIMEOUT)
            server.signal(signal.SIGTERM)
            assert await server.exit_code() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await server.exit_code()

    calls = [span.name for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    service = "recommend_api.v1.RecommenderService"
    expected = [f"{service}/ListModels", *[f"{service}/Recommend"] * 5]
    assert sorted(calls) == (expected if sampler.endswith("on") else [])
    assert not [span.name for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert "Traceback" not in server.text
