"""Time-outs of the clients that are as good as none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from recommender.client import Client, Recommendations, Request, SyncClient
from tests.support.facts import FACTS
from tests.support.serving import AnyServer

pytestmark = pytest.mark.both_edges


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10, 1e8])
async def test_a_time_out_that_never_comes_is_no_deadline(server: AnyServer, client: Client, timeout: float) -> None:
    async def one() -> AsyncIterator[Request]:
        yield Request(item_ids=[0])

    with SyncClient(f"127.0.0.1:{server.port}") as sync_client:
        answers = [
            await client.recommend([0], timeout=timeout),
            await asyncio.to_thread(sync_client.recommend, [0], timeout=timeout),
            *[answer async for _, answer in client.stream(one(), timeout=timeout)],
        ]

    assert [list(answer.item_ids) for answer in answers if isinstance(answer, Recommendations)] == [FACTS[0,]] * 3
