"""A start that is stopped ends within the grace with exit code 0, at every stage."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from pathlib import Path

import pytest

from recommender.server.process import ExitCode, unless_stopped
from recommender.server.server import Server
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.models import endless
from tests.support.paths import WEIGHTS
from tests.support.process import PATIENCE, running

SEEN_AT_ONCE = {"RECOMMENDER_LOG_LEVEL": "debug"}
"""No line of the start is held back."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_ends_a_process_that_still_imports(number: signal.Signals) -> None:
    async with running(module="tests.support.importing", wait_for="importing") as server:
        server.signal(number)
        code = await server.exit_code()

    assert code == ExitCode.DRAINED


@pytest.mark.both_edges
async def test_a_stop_ends_a_load_that_hangs(edge: Edge) -> None:
    settings = {**SEEN_AT_ONCE, "RECOMMENDER_EDGE": edge, "RECOMMENDER_DRAIN_GRACE_MS": "500"}
    async with running(settings=settings, module="tests.support.loading", wait_for="hanging") as server:
        server.signal(signal.SIGTERM)
        code = await server.exit_code()

    assert code == ExitCode.DRAINED


async def test_a_stop_ends_a_model_that_never_ends(tmp_path: Path) -> None:
    settings = {**SEEN_AT_ONCE, "RECOMMENDER_NUM_RECOMMENDATIONS": "1"}
    settings["RECOMMENDER_MODEL"] = str(endless(tmp_path / "1_model.onnx"))
    async with running(settings=settings, wait_for="model has no card: nothing to verify it by") as server:
        server.signal(signal.SIGTERM)
        code = await server.exit_code()

    assert code == ExitCode.DRAINED


@pytest.mark.parametrize("point", ["worker started", "hanging"])
async def test_a_stop_ends_workers_wherever_their_start_is(point: str) -> None:
    settings = {**SEEN_AT_ONCE, "RECOMMENDER_WORKERS": "2"}
    async with running(settings=settings, module="tests.support.loading", wait_for=point) as server:
        server.signal(signal.SIGTERM)
        code = await server.exit_code()

    assert code == ExitCode.DRAINED
    assert [
        event["event"] for event in server.log if event["event"] == "workers killed: they did not end in time"
    ] == []


async def test_a_stop_ends_a_start_that_waits_for_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object) -> list[object]:
        loop.call_soon_threadsafe(asked.set)
        answered.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    server = Server(Settings(host="shop.example", plaintext=True, port=0, weights_dir=WEIGHTS))
    starting = asyncio.create_task(server.start())
    await asked.wait()
    server.stop()
    await asyncio.wait_for(starting, PATIENCE)
    answered.set()

    assert await server.run() == ExitCode.DRAINED


async def test_work_that_ends_late_after_a_stop_is_not_waited_for() -> None:
    stop, never = asyncio.Event(), asyncio.Event()

    async def clings() -> None:
        try:
            stop.set()
            await never.wait()
        finally:
            await never.wait()

    before = asyncio.all_tasks()
    await unless_stopped(clings(), stop, 0.0)
    (left,) = asyncio.all_tasks() - before
    never.set()
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_work_that_fails_before_a_stop_raises() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await unless_stopped(fails(), asyncio.Event(), 0.0)
