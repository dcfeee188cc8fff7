"""What a router counts while versions replace one another."""

from __future__ import annotations

import asyncio
import threading

from recommender.domain import Query
from recommender.models.version import Version
from recommender.routing.router import Router
from tests.support.fakes import FakeEngine, make_batcher
from tests.support.versions import version_of

PATIENCE = 10.0


class Replaced:
    """A version that notes when its engine is being closed, and ends when it is told to."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        self.may_end = threading.Event()
        self.version: Version = version_of(make_batcher(FakeEngine()), close_engine=self._close)

    def _close(self) -> bool:
        self.closing.set()
        return self.may_end.wait(PATIENCE)


async def test_an_answer_is_counted_once_before_while_and_after_its_version_is_replaced() -> None:
    router = Router(retire_grace=1.0)
    lane = router.add_lane("shop", frozenset())
    replaced = Replaced()
    router.adopt(lane, replaced.version)
    await replaced.version.batcher.submit(Query(history=(1,), k=3))
    counted = [router.statistics().answered]

    router.adopt(lane, version_of(make_batcher(FakeEngine()), version="2"))
    counted.append(router.statistics().answered)
    assert await asyncio.to_thread(replaced.closing.wait, PATIENCE)
    counted.append(router.statistics().answered)
    replaced.may_end.set()
    assert await router.close()
    counted.append(router.statistics().answered)

    assert counted == [1, 1, 1, 1]
