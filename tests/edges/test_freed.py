"""What a call leaves behind in a grpc.aio server: nothing that waits for Python's garbage collector."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TypeAlias

import grpc
import pytest

from recommender.edges.grpc_aio.calls import OpenCalls
from recommender.edges.grpc_aio.edge import add_methods
from recommender.edges.method import Unary
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server.entry import prepare_environment

Ask: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_CONTEXT = "_ServicerContext"
"""Holds the call, its metadata and its memory in gRPC's core."""


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
async def test_a_call_that_has_ended_is_freed_without_a_collection() -> None:
    async def answer(_message: bytes, _deadline: float, request_id: str) -> api.RecommendResponse:
        return api.RecommendResponse(request_id=request_id)

    server = grpc.aio.server()
    add_methods(server, [Unary(path="/shop.Shop/Ask", answer=answer)], OpenCalls(2**20))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Ask = channel.unary_unary("/shop.Shop/Ask")
        await asyncio.gather(*(ask(b"", timeout=30) for _ in range(5)))
    await server.stop(30)

    assert sum(type(each).__name__ == _CONTEXT for each in gc.get_objects()) == 0


def test_grpc_knows_the_experiment_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY"):
        monkeypatch.setenv(name, "")  # and puts it back
        monkeypatch.delenv(name)
    prepare_environment()

    def said(experiments: str) -> str:
        environment = {**os.environ, "GRPC_EXPERIMENTS": experiments, "GRPC_VERBOSITY": "ERROR"}
        command = [sys.executable, "-c", "import grpc; grpc.server(None).add_insecure_port('127.0.0.1:0')"]
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stderr

    assert "Unknown experiment" in said("-no_such_experiment"), "gRPC tells of those that it does not know"
    assert "Unknown experiment" not in said(os.environ["GRPC_EXPERIMENTS"])
