"""A server that runs out of memory in the middle of a run."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path

import grpc
import pytest

from recommender.client import Client, Recommendations
from tests.support.models import table, write_model
from tests.support.process import Process, running

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of another process"),
]

TIMEOUT = 60.0
DIM = 8192
LONG = 4000
"""Items of a history of which a row takes twice 131 MB, four times what the warm-up has taken."""
SPARE = 48 << 20
"""Bytes that the server may still take: enough for calls, and for no row of LONG items."""


def limit_memory(server: Process) -> None:
    """Let it take SPARE bytes more, and no others."""
    pid = server.process.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + SPARE
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


async def test_a_request_that_is_too_large_for_memory_fails_alone_and_its_server_goes_on(tmp_path: Path) -> None:
    # On the grpc edge only: Envoy reserves addresses ahead, so the limit would not be met.
    model = write_model(tmp_path / "5_model.onnx", table(50, DIM))
    settings = {"RECOMMENDER_MODEL": str(model), "RECOMMENDER_NUM_RECOMMENDATIONS": "5"}
    settings |= {"RECOMMENDER_MAX_WAIT_MS": "100", "RECOMMENDER_MAX_BATCH_SIZE": "4"}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        await client.recommend([1, 2], timeout=TIMEOUT)
        limit_memory(server)
        calls = [client.recommend([1, 2], timeout=TIMEOUT) for _ in range(8)]
        calls.insert(4, client.recommend([3] * LONG, timeout=TIMEOUT))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        later = await client.recommend([1, 2], timeout=TIMEOUT)
        server.signal(signal.SIGTERM)
        code = await server.exit_code()

    failed = outcomes.pop(4)
    assert isinstance(failed, grpc.aio.AioRpcError)
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert all(isinstance(each, Recommendations) and each.item_ids == later.item_ids for each in outcomes)
    assert code == 0
