"""Requests with filters and rules, with a candidate that cannot follow them, and during swaps."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.rpc import code_pb2, status_pb2

from recommender.api.queries import Limits, Reader
from recommender.api.service import RecommenderService
from recommender.api.status import status_of
from recommender.catalogue.attributes.filters import Filter
from recommender.catalogue.attributes.joined import JoinedAttributes
from recommender.catalogue.attributes.own import OwnTables
from recommender.domain import Query
from recommender.errors import BacklogFullError
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.answering import NO_REMARKS, Answer, Answering, Remarks
from recommender.routing.candidate import Bounds
from recommender.routing.router import Lane, Router
from recommender.settings.models import CandidateMode
from recommender.threads import Turns
from tests.support.fakes import FakeEngine, make_batcher
from tests.support.serving import PATIENCE
from tests.support.versions import version_of

ABLE = frozenset({"k", "excluded", "candidates", "scores"})
RULED = (
    api.RecommendRequest(item_ids=[1], boosts=[api.Boost(filter="item.even", factor=2.0)]),
    api.RecommendRequest(item_ids=[1], max_per=[api.MaxPer(attribute="even", n=2)]),
)
FILTERED = (api.RecommendRequest(item_ids=[1], filter="item.even"), *RULED)


def shop(
    folder: Path, number: str, *, lacks: str = "", known: bool = True, engine: FakeEngine | None = None
) -> Version:
    """A version that lacks an ability, or of whose items nothing is `known`."""
    version = version_of(
        make_batcher(engine or FakeEngine()), version=number, label=f"shop@{number}", abilities=ABLE - {lacks}
    )
    if known:
        table = folder / "items.csv"
        table.write_text("id,even\n" + "".join(f"{item},{item % 2 == 0}\n" for item in range(50)), encoding="utf-8")
        version.attributes = OwnTables(cache_bytes=10_000).attributes(table, None, 50, frozenset())
    return version


def adopting(version: Version) -> tuple[Router, Lane]:
    router = Router(retire_grace=1.0)
    lane = router.add_lane("live", frozenset())
    router.adopt(lane, version)
    return router, lane


def trying_out(router: Router, version: Version, mode: CandidateMode) -> None:
    bounds = Bounds(errors=1.0, latency=0.0, least=1000)
    lane = router.add_lane("candidate", frozenset())
    router.try_out(lane, version, mode=mode, share=1.0, bounds=bounds, refuse=lambda _: None)


async def outcomes(
    service: RecommenderService, request: api.RecommendRequest
) -> tuple[api.RecommendResponse | status_pb2.Status, ...]:
    """What a request gets alone, and in a batch call."""
    alone: api.RecommendResponse | status_pb2.Status
    try:
        alone = await service.recommend(request)
    except Exception as error:  # noqa: BLE001 (as an edge does)
        alone = status_of(error)
    call = api.BatchRecommendRequest(requests=[request])
    (row,) = (await service.batch_recommend(call.SerializeToString())).results
    return alone, row.response if row.WhichOneof("outcome") == "response" else row.error


@pytest.mark.parametrize("request_", RULED)
@pytest.mark.parametrize(
    ("lacks", "why"),
    [("scores", "gives no scores"), ("k", "without the input `k`"), ("candidates", "without the input `candidates`")],
)
async def test_a_model_that_cannot_keep_rules_refuses_them(
    tmp_path: Path, request_: api.RecommendRequest, lacks: str, why: str
) -> None:
    router, _ = adopting(shop(tmp_path, "1", lacks=lacks))
    for refused in await outcomes(RecommenderService(router, limits=Limits()), request_):
        assert isinstance(refused, status_pb2.Status)
        assert refused.code == code_pb2.INVALID_ARGUMENT
        assert refused.message.startswith("boosts: " if request_.boosts else "max_per: ")
        assert f"model shop@1 {why}" in refused.message or f"model shop@1 was exported {why}" in refused.message
    await router.close()


@pytest.mark.parametrize("request_", FILTERED)
@pytest.mark.parametrize("mode", ["canary", "shadow"])
@pytest.mark.parametrize("unable", [{"lacks": "candidates"}, {"known": False}])
async def test_a_candidate_that_cannot_keep_them_fails_no_call(
    tmp_path: Path, request_: api.RecommendRequest, mode: CandidateMode, unable: dict[str, bool]
) -> None:
    router, _ = adopting(shop(tmp_path, "1"))
    trying_out(router, shop(tmp_path, "2", **unable), mode)  # type: ignore[arg-type]  # the fields of `shop`
    for reply in await outcomes(RecommenderService(router, limits=Limits()), request_):
        assert isinstance(reply, api.RecommendResponse), reply
        assert reply.model_version == "shop@1"
    await router.close()


class Busy(JoinedAttributes):
    """Attributes whose filters wait for others, and which are not to be evaluated on the event loop."""

    async def prepare(self, wanted: Filter, deadline: float = math.inf) -> ItemMask:
        del wanted, deadline
        raise BacklogFullError(1_024, 1.0)

    def mask(self, wanted: Filter) -> ItemMask:
        raise AssertionError(f"{wanted.text} was evaluated on the event loop")


def busy(version: Version) -> None:
    """Let a version's filters wait from now on."""
    attributes = version.attributes
    assert isinstance(attributes, JoinedAttributes)
    attributes.__class__ = Busy


@pytest.mark.parametrize("request_", FILTERED[:2])
@pytest.mark.parametrize("mode", ["canary", "shadow"])
async def test_a_candidate_for_which_a_filter_cannot_be_prepared_in_time_fails_no_call(
    tmp_path: Path, request_: api.RecommendRequest, mode: CandidateMode
) -> None:
    router, _ = adopting(shop(tmp_path, "1"))
    trying_out(router, shop(tmp_path, "2"), mode)
    assert router.candidate is not None
    busy(router.candidate.version)
    for reply in await outcomes(RecommenderService(router, limits=Limits()), request_):
        assert isinstance(reply, api.RecommendResponse), reply
        assert reply.model_version == "shop@1"
    await router.close()


@pytest.mark.parametrize("request_", FILTERED[:2])
async def test_a_request_keeps_what_was_prepared_for_it_whatever_becomes_of_the_table(
    tmp_path: Path, request_: api.RecommendRequest
) -> None:
    version = shop(tmp_path, "1")
    asked = Reader(Limits()).read(request_)
    await asked.prepare(version, math.inf)
    busy(version)
    query, _ = asked.for_version(version)
    assert isinstance(query, Query)
    masks = query.masks if query.rules is None else (query.rules.boosts[0].mask,)
    assert [mask.count for mask in masks] == [25]


@dataclass
class Asked:
    """A request with a filter that may only be read for versions that it was prepared for."""

    key: str = ""
    model: str = ""
    filter: str = "item.even"
    prepared: set[Version] = field(default_factory=set)
    read: list[Version] = field(default_factory=list)

    async def prepare(self, version: Version, deadline: float) -> None:
        del deadline
        await asyncio.sleep(0)
        self.prepared.add(version)

    def for_version(self, version: Version, *, leniently: bool = False) -> tuple[Query, Remarks]:
        del leniently
        assert version in self.prepared, "evaluated on the event loop"
        self.read.append(version)
        return Query((1,), 3), NO_REMARKS


@dataclass
class Swapping(Asked):
    """One after which other versions come."""

    router: Router = field(kw_only=True)
    lane: Lane = field(kw_only=True)
    coming: list[Version] = field(kw_only=True)

    def for_version(self, version: Version, *, leniently: bool = False) -> tuple[Query, Remarks]:
        answer = super().for_version(version, leniently=leniently)
        if self.coming:
            self.router.adopt(self.lane, self.coming.pop(0))
        return answer


async def test_filters_are_prepared_for_versions_that_come_between_two_turns_of_a_call(tmp_path: Path) -> None:
    first, second = (shop(tmp_path, number) for number in "12")
    router, lane = adopting(first)
    swapping = Swapping(router=router, lane=lane, coming=[second])
    others = [Asked(), Asked()]
    answers = await Answering(router, Turns()).answer_many([others[0], swapping, others[1]])
    assert [answer.version for answer in answers if isinstance(answer, Answer)] == [second] * 3
    assert swapping.read == [first, second]
    assert others[1].read == [second]
    await router.close()


async def test_a_second_version_that_comes_while_filters_are_prepared_anew_is_prepared_for_too(tmp_path: Path) -> None:
    first, second, third = (shop(tmp_path, number) for number in "123")
    router, lane = adopting(first)

    @dataclass
    class Slow(Asked):
        """One whose preparation for the second version ends last; meanwhile the third one comes."""

        async def prepare(self, version: Version, deadline: float) -> None:
            if version is second and router.live is second:
                async with asyncio.timeout(PATIENCE):
                    while not all(second in other.prepared for other in others):  # noqa: ASYNC110 (rounds of the loop)
                        await asyncio.sleep(0)
                router.adopt(lane, third)
            await super().prepare(version, deadline)

    others = [Asked(), Asked()]
    swapping = Swapping(router=router, lane=lane, coming=[second])
    answers = await Answering(router, Turns()).answer_many([others[0], swapping, others[1], Slow()])
    assert [answer.version for answer in answers if isinstance(answer, Answer)] == [third] * 4
    await router.close()


async def test_the_live_version_is_prepared_for_what_a_canary_failed_at_while_it_came(tmp_path: Path) -> None:
    first, second = (shop(tmp_path, number) for number in "12")
    router, lane = adopting(first)
    engine = FakeEngine(held=True)
    trying_out(router, shop(tmp_path, "3", engine=engine), "canary")
    call = asyncio.create_task(Answering(router, Turns()).answer_many([Asked(), Asked()]))
    async with asyncio.timeout(PATIENCE):
        while not engine.waiting:  # noqa: ASYNC110 (rounds of the loop)
            await asyncio.sleep(0)
        router.adopt(lane, second)
        while not call.done():
            for run in engine.waiting:
                run.fail()
            await asyncio.sleep(0)
        answers = await call
    assert [answer.version for answer in answers if isinstance(answer, Answer)] == [second] * 2
    await router.close()
