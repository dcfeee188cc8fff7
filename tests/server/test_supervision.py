"""An engine that hangs ends the process, after all callers were answered."""

from __future__ import annotations

import asyncio
import json
import os
import select
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recommender.client import Client
from recommender.server.process import ExitCode
from recommender.settings.network import Edge
from tests.support.process import running

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
BOUND = 10.0
"""Seconds within which the process has to be gone after the engine timeout."""


async def test_an_engine_that_hangs_fails_its_callers_turns_health_and_ends_the_process(edge: Edge) -> None:
    settings = {"RECOMMENDER_ENGINE_TIMEOUT_MS": "500", "RECOMMENDER_DEFAULT_TIMEOUT_MS": "60000"}
    settings["RECOMMENDER_EDGE"] = edge
    async with (
        running(settings=settings, module="tests.support.hanging") as server,
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


async def test_what_would_end_an_engines_thread_fails_one_caller_and_the_thread_goes_on() -> None:
    async with (
        running(module="tests.support.hanging") as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.recommend([15], timeout=TIMEOUT)
        assert (await client.recommend([1], timeout=TIMEOUT)).item_ids

    assert refused.value.code() == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_bug_that_looks_like_a_slip_of_the_caller_keeps_its_traceback_in_the_log(workers: str) -> None:
    settings = {"RECOMMENDER_WORKERS": workers}
    async with running(settings=settings, module="tests.support.breaking", wait_for=None) as server:
        code = await server.exit_code()

    (failed,) = (event for event in server.log if event["event"] == "the server failed")
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("No such file or directory: '/gone'")
    assert json.loads(server.text.splitlines()[-1]) == failed, "and no sentence after it"
    assert code == 1


async def test_a_log_that_nobody_reads_holds_up_neither_answers_nor_the_end() -> None:
    settings = {"RECOMMENDER_ENGINE_TIMEOUT_MS": "500", "RECOMMENDER_LOG_LEVEL": "debug"}
    async with (
        running(settings=settings, module="tests.support.hanging") as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        # A line a call: far more than the pipe and its reader's buffer hold.
        for _ in range(40):
            answers = await asyncio.gather(*(client.recommend([1], timeout=TIMEOUT) for _ in range(100)))
            assert all(answer.item_ids for answer in answers)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.recommend([13], timeout=TIMEOUT)
        assert await asyncio.to_thread(ends_within, server.process.pid, 0.5 + BOUND)
        assert await server.exit_code() == ExitCode.ENGINE_LOST  # reads what the pipe still holds


def ends_within(pid: int, seconds: float) -> bool:
    """Whether a process ends in time; unlike asyncio's way to wait, it leaves the pipes unread."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
