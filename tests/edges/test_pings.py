"""Pings and channel options: pings that are allowed are answered, and no option has a name that gRPC does not know."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import h2.errors
import h2.events
import pytest

from tests.support.paths import ROOT
from tests.support.raw import raw
from tests.support.serving import ServeHere

PINGS = 10
_LITERAL = re.compile(rb"(?<![a-z_.])(grpc\.[a-z0-9_.]+)\0")
_OPTION = re.compile(r'\(\s*"(grpc\.[a-z0-9_.]+)",')


def test_every_channel_option_is_one_that_the_library_reads() -> None:
    found = find_spec("grpc._cython.cygrpc")
    assert found is not None
    assert found.origin is not None
    library = Path(found.origin).read_bytes()
    named = {
        name
        for source in (ROOT / "recommender").rglob("*.py")
        for name in _OPTION.findall(source.read_text(encoding="utf-8"))
    }
    known = {name.decode() for name in _LITERAL.findall(library)}

    assert len(named) > 10
    assert named - known == set()


@pytest.mark.parametrize("port", ["port", "health_port"])
async def test_pings_that_are_allowed_are_answered_without_a_call_and_without_end(serve: ServeHere, port: str) -> None:
    async with serve(min_ping_interval_ms=0, health_port=0) as server, raw(getattr(server, port)) as caller:
        await caller.until(h2.events.RemoteSettingsChanged)
        for _ in range(PINGS):
            caller.http2.ping(b"12345678")
            await caller.flush()
            await caller.until(h2.events.PingAckReceived)


@pytest.mark.parametrize("port", ["port", "health_port"])
async def test_a_client_that_pings_too_often_is_cut_off(serve: ServeHere, port: str) -> None:
    async with serve(min_ping_interval_ms=60_000, health_port=0) as server, raw(getattr(server, port)) as caller:
        for _ in range(PINGS):
            caller.http2.ping(b"12345678")
        await caller.flush()
        code, _ = await caller.goaway()

    assert code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
