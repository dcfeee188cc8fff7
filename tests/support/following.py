"""Servers that follow the source of their model: what they serve, and calls meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from recommender.client import Client, Recommendations
from recommender.models.follower import FollowerStatus
from recommender.server.server import Server
from tests.support.versions import K

TIMEOUT = 60.0
PATIENCE = 100.0
FOLLOWING = {"num_recommendations": K, "model_poll_ms": 20}


async def until(server: Server, true: Callable[[FollowerStatus], bool]) -> FollowerStatus:
    """Wait until a server's report on its first source fits."""
    async with asyncio.timeout(PATIENCE):
        while not true(seen := server.followings()[0]):  # noqa: ASYNC110 (it looks as an operator would)
            await asyncio.sleep(0.01)
    return seen


async def answer(client: Client, **options: str) -> tuple[str, tuple[int, ...]]:
    got = await client.recommend([1, 2, 3], timeout=TIMEOUT, model=options.get("model", ""))
    return got.model_version, got.item_ids


@asynccontextmanager
async def load(client: Client, callers: int = 2) -> AsyncIterator[list[Recommendations]]:
    """A steady load while the block runs; every answer, and no error."""
    answers: list[Recommendations] = []
    stop = asyncio.Event()

    async def call() -> None:
        while not stop.is_set():
            answers.append(await client.recommend([1, 2, 3], timeout=TIMEOUT))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(call())
        try:
            yield answers
        finally:
            stop.set()
