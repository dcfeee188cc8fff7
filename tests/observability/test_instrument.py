"""Users who run `opentelemetry-instrument recommender serve` get one span a call."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from recommender.client import Client, Recommendations, Request
from tests.support.collector import Collector, collecting
from tests.support.paths import WEIGHTS
from tests.support.process import Process

TIMEOUT = 30.0


@asynccontextmanager
async def instrumented(collector: Collector, **variables: str) -> AsyncIterator[Process]:
    """`opentelemetry-instrument recommender serve`, which drains at the end without a traceback."""
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_LOGS_EXPORTER": "none",
        "RECOMMENDER_PORT": "0",
        "RECOMMENDER_WEIGHTS_DIR": str(WEIGHTS),
        **variables,
    }
    program = Path(sys.executable).with_name("opentelemetry-instrument")
    process = await asyncio.create_subprocess_exec(
        program, sys.executable, "-m", "recommender", "serve",
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    server = Process(process)
    try:
        await server.until("ready")
        yield server
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert "Traceback" not in server.text
    finally:
        if process.returncode is None:
            process.kill()
            await server.exit_code()


async def ask_every_way(server: Process) -> None:
    async def requests() -> AsyncIterator[Request]:
        yield Request(item_ids=[1])

    async with Client(f"127.0.0.1:{server.port}") as client:
        await asyncio.gather(*(client.recommend([1], timeout=TIMEOUT) for _ in range(5)))
        await client.list_models(timeout=TIMEOUT)
        answers = [answer async for _, answer in client.stream(requests(), timeout=TIMEOUT)]
    assert [type(answer) for answer in answers] == [Recommendations]


@pytest.mark.parametrize("sampler", ["parentbased_always_on", "parentbased_always_off"])
async def test_an_instrumented_server_has_one_span_a_call(sampler: str) -> None:
    with collecting() as collector:
        async with instrumented(collector, OTEL_TRACES_SAMPLER=sampler) as server:
            await ask_every_way(server)

    calls = [span.name for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    service = "recommend_api.v1.RecommenderService"
    expected = [f"{service}/ListModels", *[f"{service}/Recommend"] * 5, f"{service}/StreamRecommend"]
    assert sorted(calls) == (expected if sampler.endswith("on") else [])
    assert not [span.name for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]


async def test_an_instrumented_server_without_traces_of_its_own_answers_streams() -> None:
    with collecting() as collector:
        async with instrumented(collector, OTEL_TRACES_EXPORTER="none") as server:
            await ask_every_way(server)

    assert not collector.spans
