"""Broken HTTP/2 on the port affects no other caller: the first sessions of a fuzzing run, the same every time."""

from __future__ import annotations

from recommender.server.server import Server
from tests.fuzz.port import fuzz_port


async def test_a_good_caller_is_answered_while_others_send_broken_sessions(server: Server) -> None:
    seen = await fuzz_port(server.port, seed=0, until=lambda count: count == 100)

    assert seen["closed"]
    assert seen["answered"]
