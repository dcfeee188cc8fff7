"""No silent zombie: an engine that hangs ends the process, after everybody was told."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recommender.client import Client
from recommender.server import ExitCode
from tests.server.process import running

TIMEOUT = 30.0
BOUND = 10.0
"""Seconds within which the process has to be gone after the engine timeout."""


async def test_an_engine_that_hangs_fails_its_callers_turns_health_and_ends_the_process() -> None:
    settings = {"RECOMMENDER_ENGINE_TIMEOUT_MS": "500", "RECOMMENDER_DEFAULT_TIMEOUT_MS": "60000"}
    async with (
        running(settings=settings, module="tests.server.hanging") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        seen = [(await watch.read()).status]
        assert (await client.recommend([1], timeout=TIMEOUT)).item_ids
        started = time.monotonic()
        calls = [asyncio.create_task(client.recommend([13], timeout=TIMEOUT))]
        calls += [asyncio.create_task(client.recommend([row], timeout=TIMEOUT)) for row in range(20, 40)]
        seen.append((await watch.read()).status)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        code = await server.exit_code()
        took = time.monotonic() - started

    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    hung = errors[0]
    assert isinstance(hung, grpc.aio.AioRpcError)
    assert hung.code() == grpc.StatusCode.INTERNAL
    told = {error.code() for error in errors[1:] if isinstance(error, grpc.aio.AioRpcError)}
    assert told <= {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
    assert code == ExitCode.ENGINE_LOST
    assert took < 0.5 + BOUND
    assert any(event["event"] == "engine lost" for event in server.log)
