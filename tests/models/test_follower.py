"""A source that misbehaves costs the server little."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator, Sequence

import pytest

from recommender.batching.cost import Observation
from recommender.errors import ModelError, SourceTimeoutError
from recommender.models.artifact import Artifact, Release
from recommender.models.follower import Follower
from recommender.models.sources.source import Progress
from recommender.models.version import Version
from recommender.threads import background_works

PATIENCE = 60.0


class HangingSource:
    """Counts the threads that hang in it until `released`."""

    reference, names, may_change = "models:/shop@champion", frozenset({"shop"}), True

    def __init__(self) -> None:
        self.released = threading.Event()
        self.hanging = 0

    def wanted(self) -> Release:
        self.hanging += 1
        self.released.wait(PATIENCE)
        self.hanging -= 1
        raise ModelError("there is none")

    def others(self) -> Sequence[Release]:
        return ()

    def fetch(self, release: Release, progress: Progress) -> Artifact:
        raise NotImplementedError

    def keep(self, release: Release) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def source() -> Iterator[HangingSource]:
    source = HangingSource()
    yield source
    source.released.set()


async def prove(_: Artifact) -> Sequence[Observation]:
    return ()


async def load(_artifact: Artifact, _observations: Sequence[Observation]) -> Version:
    raise NotImplementedError


async def discard(_: Version) -> None:
    pass


async def test_a_source_that_hangs_holds_three_threads_and_is_asked_again_when_it_returns(
    source: HangingSource,
) -> None:
    follower = Follower(
        source, prove=prove, load=load, adopt=lambda _: None, discard=discard, interval=0.01, patience=0.02, timeout=1.0
    )
    with pytest.raises(SourceTimeoutError):
        await follower.start()
    async with asyncio.timeout(PATIENCE):
        while source.hanging < 3:
            await follower.check()
    for _ in range(10):
        await follower.check()

    assert source.hanging == 3
    assert "hangs in 3 earlier calls" in (follower.statistics().failing or "")
    assert follower.statistics().failing_code == "SOURCE_TIMEOUT"
    source.released.set()
    async with asyncio.timeout(PATIENCE):
        while follower.statistics().failing != "there is none":
            await follower.check()


async def test_a_call_that_fails_after_its_follower_was_cancelled_is_no_error(source: HangingSource) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    follower = Follower(
        source,
        prove=prove,
        load=load,
        adopt=lambda _: None,
        discard=discard,
        interval=1.0,
        patience=PATIENCE,
        timeout=1.0,
    )
    start = asyncio.create_task(follower.start())
    async with asyncio.timeout(PATIENCE):
        while not source.hanging:  # noqa: ASYNC110 (of another thread)
            await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        source.released.set()
        while background_works():  # noqa: ASYNC110 (of another thread)
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()

    assert complaints == []
