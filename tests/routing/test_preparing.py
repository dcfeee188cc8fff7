"""Filters are prepared for every version that may answer, also for those that arrive meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recommender.models.version import Version
from recommender.routing.candidate import Bounds
from recommender.routing.preparing import prepare
from recommender.routing.router import Router
from tests.support.fakes import FakeEngine, make_batcher
from tests.support.versions import version_of


def version(number: int) -> Version:
    return version_of(make_batcher(FakeEngine()), version=str(number))


@dataclass
class Asked:
    """A request that notes what it was prepared for; versions come meanwhile."""

    router: Router
    coming: list[Any]
    model: str = ""
    filter: str = "item.price < 1.0"
    prepared: list[Version] = field(default_factory=list)

    async def prepare(self, version: Version, deadline: float) -> None:
        del deadline
        self.prepared.append(version)
        if self.coming:
            self.coming.pop(0)()


async def test_versions_that_come_meanwhile_are_prepared_for_too() -> None:
    router = Router(retire_grace=1.0)
    lane = router.add_lane("live", frozenset())
    first, second, candidate = map(version, (1, 2, 3))
    router.adopt(lane, first)
    bounds = Bounds(errors=1.0, latency=0.0, least=1000)

    def tried() -> None:
        other = router.add_lane("candidate", frozenset())
        router.try_out(other, candidate, mode="canary", share=0.5, bounds=bounds, refuse=lambda _: None)

    asked = Asked(router, [lambda: router.adopt(lane, second), tried])
    await prepare(asked, router, 1.0)
    assert asked.prepared == [first, second, candidate]
    await router.close()
