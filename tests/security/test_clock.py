"""Jumps of the wall clock: only what is dated by it notices them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from recommender.client import Client
from recommender.security.access import digest_of, new_token
from tests.support.process import running

pytestmark = pytest.mark.system("faketime")

TIMEOUT = 5.0
DAYS = 30


def preloaded() -> str:
    """The library that replaces the wall clock."""
    shown = subprocess.run(
        ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], check=True, capture_output=True, text=True
    )
    return shown.stdout.strip()


async def code(port: int, token: str) -> grpc.StatusCode:
    """How a call with a deadline ends."""
    async with Client(f"127.0.0.1:{port}", token=token) as client:
        try:
            await client.recommend([1, 2, 3], timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_clock_that_jumps_ends_tokens_at_their_date_and_nothing_else(tmp_path: Path) -> None:
    lasting, expiring = new_token(), new_token()
    date = datetime.now(UTC) + timedelta(days=DAYS)
    tokens, offset = tmp_path / "tokens.toml", tmp_path / "offset"
    tokens.write_text(
        f'[lasting]\nsha256 = ["{digest_of(lasting).hex()}"]\nrequests_per_second = 100\n'
        f'[expiring]\nsha256 = ["{digest_of(expiring).hex()}"]\nexpires = {date.isoformat(timespec="seconds")}\n',
        encoding="ascii",
    )
    offset.write_text("+0", encoding="ascii")
    settings = {
        "RECOMMENDER_TOKENS_FILE": str(tokens),
        "LD_PRELOAD": await asyncio.to_thread(preloaded),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    seen: list[tuple[grpc.StatusCode, grpc.StatusCode]] = []
    async with running(settings=settings) as server:
        for jump in ("+0", f"+{DAYS + 1}d", "-3650d"):
            offset.write_text(jump, encoding="ascii")
            seen.append((await code(server.port, lasting), await code(server.port, expiring)))
        server.signal(signal.SIGTERM)
        stopped = await server.exit_code()

    good, refused = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
    assert seen == [(good, good), (good, refused), (good, good)]
    assert stopped == 0
