"""Callers without a token, and callers that send or read too little: what they may hold, and for how long."""

from __future__ import annotations

import hashlib
from pathlib import Path

import grpc
import pytest

from tests.support.raw import raw
from tests.support.serving import AnyServer, Serve

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
TOKEN = "rcm_of_a_friend"  # noqa: S105 (no secret)
BEGUN = b"\x00\x00\x40\x00\x00"
"""The length of a message of 4 MiB that never comes."""


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[friend]\nsha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]\n', encoding="ascii")
    return path


async def test_a_call_without_a_token_ends_before_its_message_comes(serve: Serve, tokens: Path) -> None:
    async with serve(tokens_file=tokens) as server, raw(server.port) as stranger:
        stream = await stranger.call()
        stranger.http2.send_data(stream, BEGUN)
        await stranger.flush()

        assert await stranger.status(stream) == grpc.StatusCode.UNAUTHENTICATED.value[0]


async def test_a_message_that_does_not_come_ends_the_call_at_its_deadline(serve: Serve) -> None:
    async with serve(default_timeout_ms=200) as server, raw(server.port) as slow:
        stream = await slow.call()
        slow.http2.send_data(stream, BEGUN)
        await slow.flush()

        assert await slow.status(stream) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_a_call_that_ends_without_a_message_is_told_so(server: AnyServer) -> None:
    async with raw(server.port) as caller:
        stream = await caller.call()
        caller.http2.end_stream(stream)
        await caller.flush()

        assert await caller.status(stream) == grpc.StatusCode.INVALID_ARGUMENT.value[0]
