"""The wire as another HTTP/2 implementation speaks it."""

from __future__ import annotations

import asyncio
import re
import struct
import subprocess
from pathlib import Path

import pytest

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.serving import AnyServer

pytestmark = pytest.mark.both_edges


@pytest.mark.system("h2load")
async def test_h2load_gets_every_call_answered(server: AnyServer, tmp_path: Path) -> None:
    message = api.RecommendRequest(item_ids=[1, 2, 3, 4]).SerializeToString()
    body = tmp_path / "body.bin"
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    before = server.batcher.statistics().answered
    process = await asyncio.create_subprocess_exec(
        "h2load", "-n", "2000", "-c", "4", "-m", "32", "-d", str(body),
        "-H", "content-type: application/grpc", "-H", "te: trailers",
        f"http://127.0.0.1:{server.port}/recommend_api.v1.RecommenderService/Recommend",
        stdout=subprocess.PIPE,
    )  # fmt: skip

    out, _ = await asyncio.wait_for(process.communicate(), 60)

    assert re.search(r"2000 succeeded, 0 failed, 0 errored, 0 timeout", out.decode())
    # h2load counts HTTP statuses and knows no gRPC ones: the server does.
    assert server.batcher.statistics().answered - before == 2000
