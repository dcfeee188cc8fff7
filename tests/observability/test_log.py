"""What operators read: which call a line belongs to, what is said of a start, and that nothing floods."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import grpc
import pytest
import structlog

from recommender.client import Client
from recommender.observability.log import Limiter, Writer
from tests.support.models import table, write_model
from tests.support.paths import ROOT
from tests.support.process import running
from tests.support.programs import run

TIMEOUT = 30.0


class Stuck(io.StringIO):
    """A file that blocks its writer until a test reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read_now = threading.Event()

    def write(self, text: str) -> int:
        self.read_now.wait()
        return super().write(text)


def test_lines_for_a_stuck_reader_are_dropped_and_counted_and_nobody_waits() -> None:
    stuck = Stuck()
    writer = Writer(stuck, most=3)
    for number in range(10):
        writer.write(f"{number}\n")
    assert not writer.finish(0.01)

    stuck.read_now.set()
    with structlog.testing.capture_logs() as logged:
        assert writer.finish(TIMEOUT)
    written = stuck.getvalue().splitlines()
    assert written == [str(number) for number in range(len(written))], "the oldest, in order"
    assert [event["lines"] for event in logged] == [10 - len(written)]


def test_the_limiter_lets_a_burst_through_and_says_later_how_many_it_held_back() -> None:
    now = [0.0]
    limiter = Limiter(burst=2, seconds=10.0, clock=lambda: now[0])

    def passes(event: str, level: str = "warning") -> dict[str, object] | None:
        try:
            return dict(limiter(None, level, {"event": event}))
        except structlog.DropEvent:
            return None

    assert [passes("full") for _ in range(5)] == [{"event": "full"}] * 2 + [None] * 3
    assert passes("other") == {"event": "other"}
    assert passes("full", "error") == {"event": "full"}
    assert [passes("call", "debug") for _ in range(5)] == [{"event": "call"}] * 5
    now[0] = 10.0
    assert passes("full") == {"event": "full", "suppressed": 3}
    assert passes("full") == {"event": "full"}


async def test_a_call_is_one_line_at_debug_with_its_id_and_so_is_its_batch() -> None:
    async with running("--log-level", "debug") as server, Client(f"127.0.0.1:{server.port}") as client:
        await client.recommend([1, 2], timeout=TIMEOUT, request_id="mine")
        call = await server.until("call")
        server.signal(signal.SIGTERM)
        await server.exit_code()

    assert call["request_id"] == "mine"
    assert call["method"] == "recommend_api.v1.RecommenderService/Recommend"
    assert call["status"] == "OK"
    (batch,) = (event for event in server.log if event["event"] == "batch")
    assert (batch["rows"], batch["cells"], batch["closed"], batch["failed"]) == (1, 2, "drained", False)
    assert "request_id" not in batch, "a batch belongs to no single call"
    (settings,) = (event for event in server.log if event["event"] == "settings")
    assert {key: value for key, value in settings.items() if key.startswith("RECOMMENDER_")} == {
        "RECOMMENDER_PORT": "0",
        "RECOMMENDER_WEIGHTS_DIR": str(ROOT / "weights"),
        "RECOMMENDER_LOG_LEVEL": "debug",
    }
    assert all(next(iter(event)) == "event" for event in server.log), "what happened comes first"


async def test_lines_for_a_terminal_are_not_padded_and_begin_with_what_matters(tmp_path: Path) -> None:
    (tmp_path / "10_model.onnx").write_bytes(b"none")
    words = ("serve", "--port", "0", "--model", str(tmp_path / "10_model.onnx"), "--log-level", "debug")
    environment = {**os.environ, "RECOMMENDER_LOG_FORMAT": "text"}
    _, _, err = await run(sys.executable, "-m", "recommender", *words, cwd=ROOT, env=environment)

    line = err.splitlines()[0]
    assert re.fullmatch(r"\S+Z \[info +\] listening address=127\.0\.0\.1:\d+ security=plaintext", line), line
    assert len(line) <= 100


async def test_attempts_of_one_call_share_its_id_and_a_flood_of_refusals_is_a_few_lines(tmp_path: Path) -> None:
    slow = write_model(tmp_path / "5_model.onnx", table(), burn=20)
    settings = {"RECOMMENDER_MODEL": str(slow), "RECOMMENDER_NUM_RECOMMENDATIONS": "5"}
    settings |= {"RECOMMENDER_MAX_BATCH_SIZE": "1", "RECOMMENDER_MAX_BACKLOG": "1"}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        calls = [client.recommend([1], timeout=TIMEOUT, request_id=f"call-{row}") for row in range(100)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        server.signal(signal.SIGTERM)
        await server.exit_code()

    refused = [event for event in server.log if event["event"] == "refused"]
    assert sum(isinstance(answer, grpc.aio.AioRpcError) for answer in answers) > 20
    assert 1 < len(refused) < 100
    assert all(event["status"] == "RESOURCE_EXHAUSTED" for event in refused)
    assert all(event["request_id"].startswith("call-") for event in refused)


async def test_what_a_user_has_seen_is_not_in_the_log_above_debug() -> None:
    async with running() as server, Client(f"127.0.0.1:{server.port}") as client:
        await client.recommend([4711], timeout=TIMEOUT)
        for history in ([-4711], [4_711_000]):
            with pytest.raises(grpc.aio.AioRpcError):
                await client.recommend(history, timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.recommend(item_keys=["key-4711"], timeout=TIMEOUT)
        server.signal(signal.SIGTERM)
        await server.exit_code()

    assert "4711" not in json.dumps([{**event, "timestamp": ""} for event in server.log])
