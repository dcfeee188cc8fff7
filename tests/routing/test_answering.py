"""A canary that fails, a shadow that is sent copies: through the service, with engines that tests hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from google.rpc import code_pb2, status_pb2

from recommender.api.queries import Limits
from recommender.api.service import RecommenderService
from recommender.api.status import status_of
from recommender.domain import Feature, Model, Times, Types, Users
from recommender.models.version import Version
from recommender.models.vocabulary import Vocabulary, write_vocabulary
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.candidate import Bounds, CandidateReport
from recommender.routing.router import Router
from tests.support.fakes import FakeEngine, make_batcher, turns
from tests.support.versions import version_of

POISON = 1

Outcome: TypeAlias = api.RecommendResponse | status_pb2.Status
Ask: TypeAlias = Callable[[RecommenderService, api.RecommendRequest], Awaitable[Outcome]]


async def alone(service: RecommenderService, request: api.RecommendRequest) -> Outcome:
    try:
        return await service.recommend(request)
    except Exception as error:  # noqa: BLE001 (as an edge does)
        return status_of(error)


async def in_a_batch(service: RecommenderService, request: api.RecommendRequest) -> Outcome:
    other = api.RecommendRequest(item_ids=[2])
    call = api.BatchRecommendRequest(requests=[other, request, other])
    before, result, after = (await service.batch_recommend(call.SerializeToString())).results
    for row in (before, after):
        assert row.WhichOneof("outcome") == "response"
    return result.response if result.WhichOneof("outcome") == "response" else result.error


async def on_a_stream(service: RecommenderService, request: api.RecommendRequest) -> Outcome:
    reply = await service.stream_recommend(api.StreamRecommendRequest(correlation_id=7, request=request))
    assert reply.correlation_id == 7
    return reply.response if reply.WhichOneof("outcome") == "response" else reply.error


every_way = pytest.mark.parametrize("ask", [alone, in_a_batch, on_a_stream])


class Trial:
    """A live version and a candidate that gets a share of the requests, with separate engines."""

    def __init__(self, mode: Any, live: Version, candidate: Version, share: float = 1.0) -> None:
        self.live, self.candidate = live, candidate
        self._router = Router(retire_grace=1.0)
        self._router.adopt(self._router.add_lane("live", frozenset()), live)
        bounds = Bounds(errors=1.0, latency=0.0, least=1000)
        lane = self._router.add_lane("candidate", frozenset())
        self._router.try_out(lane, candidate, mode=mode, share=share, bounds=bounds, refuse=lambda _: None)
        self.service = RecommenderService(self._router, limits=Limits())

    @property
    def report(self) -> CandidateReport:
        assert self._router.candidate is not None
        return self._router.candidate.statistics()


def keys_of(name: str, items: int, folder: Path) -> Vocabulary:
    write_vocabulary([f"{name}-{item}" for item in range(items)], folder / name)
    return Vocabulary.open(folder / name, items)


def failing(**changes: Any) -> Version:
    """A version whose engine fails at histories with POISON."""
    return version_of(make_batcher(FakeEngine(poison=frozenset({POISON}))), version="2", **changes)


def working(**changes: Any) -> Version:
    return version_of(make_batcher(FakeEngine()), version="1", **changes)


@every_way
async def test_nothing_is_left_of_the_answer_that_a_canary_failed_at(ask: Ask, tmp_path: Path) -> None:
    canary = failing(items=5, vocabulary=keys_of("canary", 5, tmp_path))
    trial = Trial("canary", working(items=50, vocabulary=keys_of("live", 50, tmp_path)), canary)

    reply = await ask(trial.service, api.RecommendRequest(item_ids=[POISON, 7]))

    assert reply == api.RecommendResponse(
        item_ids=[8, 2, 3],
        scores=[1.0],
        item_keys=["live-8", "live-2", "live-3"],
        model_version="shop@1",
        source=api.SOURCE_MODEL,
    )
    assert trial.report.candidate_failed == 1


@every_way
async def test_the_fallback_list_of_the_live_version_answers_for_a_failed_canary(ask: Ask) -> None:
    trial = Trial("canary", working(items=1, fallback=(0,)), failing(items=50))

    reply = await ask(trial.service, api.RecommendRequest(item_ids=[POISON]))

    assert reply == api.RecommendResponse(
        item_ids=[0], model_version="shop@1", unknown_item_ids=[POISON], source=api.SOURCE_FALLBACK
    )
    assert (trial.live.fallbacks, trial.report.candidate_failed) == (1, 1)


@every_way
async def test_a_request_that_fails_on_a_canary_and_is_invalid_for_the_live_version_is_refused(ask: Ask) -> None:
    trial = Trial("canary", working(items=1), failing(items=50))

    refused = await ask(trial.service, api.RecommendRequest(item_ids=[POISON]))

    assert isinstance(refused, status_pb2.Status)
    assert refused.code == code_pb2.INVALID_ARGUMENT
    assert "model shop@1 has no fallback list" in refused.message


@every_way
async def test_a_request_pinned_to_a_canary_fails_with_it(ask: Ask) -> None:
    trial = Trial("canary", working(), failing())

    refused = await ask(trial.service, api.RecommendRequest(item_ids=[POISON], model="shop@2"))

    assert isinstance(refused, status_pb2.Status)
    assert refused.code == code_pb2.INTERNAL
    assert trial.report.candidate_failed == 1


@every_way
async def test_a_shadow_is_sent_every_request_and_answers_none(ask: Ask) -> None:
    trial = Trial("shadow", working(), failing())

    replies = [await ask(trial.service, api.RecommendRequest(item_ids=[item])) for item in (20, 30, POISON)]
    await turns(50)

    assert {getattr(reply, "model_version", reply) for reply in replies} == {"shop@1"}
    report, copies = trial.report, 9 if ask is in_a_batch else 3
    assert (report.live_requests, report.candidate_requests, report.mirrored) == (copies, copies, copies - 1)
    assert (report.candidate_failed, report.shed, report.overlap) == (1, 0, 1.0)


async def test_a_shadow_is_sent_rows_of_a_batch_call_only_while_it_has_room() -> None:
    trial = Trial("shadow", working(), version_of(make_batcher(FakeEngine(), max_backlog=1000), version="2"))

    call = api.BatchRecommendRequest(requests=[api.RecommendRequest(item_ids=[2])] * 100)
    await trial.service.batch_recommend(call.SerializeToString())
    await turns(200)

    assert (trial.report.mirrored, trial.report.shed) == (64, 36)


async def test_a_shadow_is_sent_no_row_that_names_a_version_or_needs_no_engine() -> None:
    trial = Trial("shadow", working(items=5, fallback=(4, 2)), version_of(make_batcher(FakeEngine()), version="2"))
    pinned, unknown = api.RecommendRequest(item_ids=[2], model="shop@1"), api.RecommendRequest(item_ids=[20])

    call = api.BatchRecommendRequest(requests=[pinned, unknown])
    results = (await trial.service.batch_recommend(call.SerializeToString())).results
    await turns(50)

    assert [result.response.source for result in results] == [api.SOURCE_MODEL, api.SOURCE_FALLBACK]
    assert (trial.report.mirrored, trial.report.shed) == (0, 0)


def users(**changes: Any) -> dict[str, Any]:
    """The facts of a version that takes users."""
    return {"model": replace(working().model, users=Users(9), **changes)}


@every_way
async def test_a_user_that_only_the_canary_takes_fails_no_call_and_counts_for_nobody(ask: Ask) -> None:
    trial = Trial("canary", working(), working(**users(version="2"), label="shop@2"), share=0.0)
    named = api.RecommendRequest(item_ids=[7], user_id=3)

    reply = await ask(trial.service, named)

    assert isinstance(reply, api.RecommendResponse)
    assert (reply.model_version, list(reply.ignored_inputs)) == ("shop@1", ["user_id"])
    assert (trial.report.live_failed, trial.report.candidate_requests) == (0, 0)


@every_way
async def test_a_user_that_only_the_live_version_takes_is_answered_by_that(ask: Ask) -> None:
    trial = Trial("canary", working(**users(), label="shop@1"), failing())

    reply = await ask(trial.service, api.RecommendRequest(item_ids=[7], user_id=3))

    assert isinstance(reply, api.RecommendResponse)
    assert (reply.model_version, list(reply.ignored_inputs)) == ("shop@1", [])
    assert trial.report.candidate_failed == 0


@every_way
async def test_a_user_that_neither_version_takes_is_refused_and_counts_for_nobody(ask: Ask) -> None:
    trial = Trial("canary", working(), failing())

    refused = await ask(trial.service, api.RecommendRequest(item_ids=[7], user_id=3))

    assert isinstance(refused, status_pb2.Status)
    assert refused.code == code_pb2.INVALID_ARGUMENT
    assert "model shop@1 takes no user" in refused.message
    assert trial.report.candidate_failed == 0


@every_way
async def test_what_a_canary_with_users_fails_at_the_live_version_answers_without_the_user(ask: Ask) -> None:
    trial = Trial("canary", working(), failing(**users(version="2")))

    reply = await ask(trial.service, api.RecommendRequest(item_ids=[POISON], user_id=3))

    assert isinstance(reply, api.RecommendResponse)
    assert (reply.model_version, list(reply.ignored_inputs)) == ("shop@1", ["user_id"])
    assert trial.report.candidate_failed == 1


@every_way
async def test_a_canary_that_needs_a_user_is_asked_for_those_who_name_one_only(ask: Ask) -> None:
    needs = replace(working().model, version="2", users=Users(9, unknown="fallback"))
    trial = Trial("canary", working(), version_of(make_batcher(FakeEngine()), version="2", model=needs, plain_items=0))

    without = await ask(trial.service, api.RecommendRequest(item_ids=[7]))
    named = await ask(trial.service, api.RecommendRequest(item_ids=[7], user_id=3))

    assert [getattr(reply, "model_version", reply) for reply in (without, named)] == ["shop@1", "shop@2"]
    assert trial.report.candidate_failed == 0


@every_way
async def test_a_shadow_is_sent_no_user_that_it_does_not_take(ask: Ask) -> None:
    trial = Trial("shadow", working(**users(), label="shop@1"), failing())

    reply = await ask(trial.service, api.RecommendRequest(item_ids=[POISON], user_id=3))
    await turns(50)

    assert getattr(reply, "model_version", reply) == "shop@1"
    assert trial.report.candidate_failed == 0


def events(types: Types | None = None, times: Times | None = None, **changes: Any) -> dict[str, Any]:
    """The facts of a version that reads types or times."""
    needs = any(each is not None and each.default is None for each in (types, times))
    model = replace(SHOP, history_types=types, history_times=times, **changes)
    return {"model": model, "label": model.label} | ({"plain_items": 0} if needs else {})


def canary(live: dict[str, Any], candidate: dict[str, Any], share: float) -> Trial:
    return Trial("canary", working(**live), working(**candidate), share=share)


SHOP = Model("shop", "1", 50, default_k=3, max_k=20, longest_history=16, score_tolerance=0.0)
KNOWN, DEFAULTS = Types(3), Types(3, default=1)
SORTED = Times(default=0, sorted_times=True)
NEW: dict[str, Any] = {"version": "2"}
TYPED = api.RecommendRequest(item_ids=[7, 8], history_type_ids=[1, 2])
OTHERS = api.RecommendRequest(item_ids=[7, 8], history_type_ids=[1, 9])
FALLING = api.RecommendRequest(item_ids=[7, 8], history_times=[5, 4])
PLAIN = api.RecommendRequest(item_ids=[7, 8])


@every_way
@pytest.mark.parametrize(
    ("live", "candidate", "share", "request_", "version", "ignored"),
    [
        ({}, events(KNOWN, **NEW), 0.0, TYPED, "shop@1", ["history_type_ids"]),
        ({}, events(KNOWN, **NEW), 1.0, TYPED, "shop@2", []),
        ({}, events(KNOWN, **NEW), 1.0, PLAIN, "shop@1", []),
        (events(KNOWN), events(**NEW), 1.0, TYPED, "shop@1", []),
        (events(DEFAULTS), events(Types(9), **NEW), 0.0, OTHERS, "shop@1", ["history_type_ids"]),
        (events(Types(9, default=1)), events(KNOWN, **NEW), 1.0, OTHERS, "shop@1", []),
        ({}, events(times=Times(), **NEW), 0.0, FALLING, "shop@1", ["history_times"]),
        (events(times=Times()), events(times=SORTED, **NEW), 1.0, FALLING, "shop@1", []),
        (
            events(times=Times(0, sorted_times=True)),
            events(times=Times(), **NEW),
            0.0,
            FALLING,
            "shop@1",
            ["history_times"],
        ),
    ],
)
async def test_types_and_times_that_one_version_reads_fail_no_call_and_count_against_nobody(
    ask: Ask,
    live: dict[str, Any],
    candidate: dict[str, Any],
    share: float,
    request_: api.RecommendRequest,
    version: str,
    ignored: list[str],
) -> None:
    trial = canary(live, candidate, share)

    reply = await ask(trial.service, request_)

    assert isinstance(reply, api.RecommendResponse), reply
    assert (reply.model_version, list(reply.ignored_inputs)) == (version, ignored)
    assert (trial.report.live_failed, trial.report.candidate_failed) == (0, 0)


def features(*declared: Feature, **changes: Any) -> dict[str, Any]:
    """The facts of a version that takes features."""
    model = replace(SHOP, features=declared, **changes)
    needs = any(each.default is None for each in declared)
    return {"model": model, "label": model.label, "needs_features": needs} | ({"plain_items": -1} if needs else {})


AGE, OLDER = Feature("age", "int64", default=3), Feature("age", "float", default=3.0)
NEEDED, SEX = Feature("age", "int64"), Feature("sex", "bool", default=False)
AGED = api.RecommendRequest(item_ids=[7], features={"age": api.FeatureValue(int64_value=9)})
HALF = api.RecommendRequest(item_ids=[7], features={"age": api.FeatureValue(double_value=9.5)})
BOTH = api.RecommendRequest(item_ids=[7], user_id=1, features=AGED.features)


@every_way
@pytest.mark.parametrize(
    ("live", "candidate", "share", "request_", "version", "ignored"),
    [
        ({}, features(AGE, **NEW), 0.0, AGED, "shop@1", ["features[age]"]),
        ({}, features(AGE, **NEW), 1.0, AGED, "shop@2", []),
        ({}, features(NEEDED, **NEW), 1.0, PLAIN, "shop@1", []),
        ({}, features(NEEDED, **NEW), 1.0, AGED, "shop@2", []),
        (features(AGE), features(**NEW), 1.0, AGED, "shop@1", []),
        (features(NEEDED), features(**NEW), 1.0, PLAIN, "shop@2", []),
        (features(AGE), features(OLDER, **NEW), 0.0, HALF, "shop@1", ["features[age]"]),
        (features(OLDER), features(AGE, **NEW), 1.0, HALF, "shop@1", []),
        (features(AGE), features(users=Users(9), **NEW), 0.0, BOTH, "shop@1", ["user_id"]),
        (features(users=Users(9)), features(AGE, **NEW), 0.0, BOTH, "shop@1", ["features[age]"]),
    ],
)
async def test_features_that_one_version_takes_fail_no_call_and_count_against_nobody(
    ask: Ask,
    live: dict[str, Any],
    candidate: dict[str, Any],
    share: float,
    request_: api.RecommendRequest,
    version: str,
    ignored: list[str],
) -> None:
    trial = canary(live, candidate, share)

    reply = await ask(trial.service, request_)

    assert isinstance(reply, api.RecommendResponse), reply
    assert (reply.model_version, list(reply.ignored_inputs)) == (version, ignored)
    assert (trial.report.live_failed, trial.report.candidate_failed) == (0, 0)


@every_way
@pytest.mark.parametrize(
    ("live", "candidate", "request_", "sentence"),
    [
        (features(AGE), features(AGE, **NEW), HALF, "model shop@1 takes one int64 here, not one double"),
        (features(SEX), features(**NEW), AGED, "model shop@1 takes no such feature, but sex: leave features[age] out"),
        (features(AGE), features(NEEDED, **NEW), HALF, "model shop@1 takes one int64 here, not one double"),
    ],
)
async def test_features_that_neither_version_takes_are_refused_and_count_against_nobody(
    ask: Ask, live: dict[str, Any], candidate: dict[str, Any], request_: api.RecommendRequest, sentence: str
) -> None:
    for share in (0.0, 1.0):
        trial = canary(live, candidate, share)

        refused = await ask(trial.service, request_)

        assert isinstance(refused, status_pb2.Status)
        assert refused.code == code_pb2.INVALID_ARGUMENT
        assert sentence in refused.message
        assert (trial.report.live_failed, trial.report.candidate_failed) == (0, 0)


@every_way
async def test_a_shadow_is_sent_no_features_that_it_does_not_take(ask: Ask) -> None:
    trial = Trial("shadow", working(**features(AGE)), failing())

    reply = await ask(
        trial.service, api.RecommendRequest(item_ids=[POISON], features={"age": api.FeatureValue(int64_value=1)})
    )
    await turns(50)

    assert getattr(reply, "model_version", reply) == "shop@1"
    assert trial.report.candidate_failed == 0


@every_way
@pytest.mark.parametrize(
    ("live", "candidate", "request_", "sentence"),
    [
        (events(DEFAULTS), events(KNOWN, **NEW), OTHERS, "9 is unknown: model shop@1 knows the types 1 to 3"),
        (events(DEFAULTS), events(**NEW), OTHERS, "9 is unknown: model shop@1 knows the types 1 to 3"),
        (events(), events(**NEW), TYPED, "model shop@1 takes no types of events"),
        (events(DEFAULTS), events(KNOWN, **NEW), FALLING, "model shop@1 takes no times"),
    ],
)
async def test_types_that_neither_version_reads_are_refused_and_count_against_nobody(
    ask: Ask, live: dict[str, Any], candidate: dict[str, Any], request_: api.RecommendRequest, sentence: str
) -> None:
    for share in (0.0, 1.0):
        trial = canary(live, candidate, share)

        refused = await ask(trial.service, request_)

        assert isinstance(refused, status_pb2.Status)
        assert refused.code == code_pb2.INVALID_ARGUMENT
        assert sentence in refused.message
        assert (trial.report.live_failed, trial.report.candidate_failed) == (0, 0)


@every_way
async def test_a_shadow_is_sent_no_types_that_it_does_not_know(ask: Ask) -> None:
    trial = Trial("shadow", working(**events(Types(9, default=1))), failing(**events(KNOWN, **NEW)))
    request = api.RecommendRequest(item_ids=[POISON], history_type_ids=[9])

    reply = await ask(trial.service, request)
    await turns(50)

    assert getattr(reply, "model_version", reply) == "shop@1"
    assert trial.report.candidate_failed == 0
