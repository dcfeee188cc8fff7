"""Two versions at once: a canary, a shadow, and a candidate that must go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from recommender.client import Client, Recommendations, Refusal
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.candidate import Bounds, CandidateReport, Side, place_of, verdict
from recommender.server.server import Server
from tests.support.following import FOLLOWING, PATIENCE, TIMEOUT, answer
from tests.support.serving import ServeHere
from tests.support.versions import UNTRIED, answer_of, write_version

USERS = [f"user-{number}" for number in range(200)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of a model `shop` with two versions."""
    for version in (1, 2):
        write_version(tmp_path / "shop" / str(version), version)
    return tmp_path / "shop"


def trial(models: Path, **changes: object) -> dict[str, object]:
    return {"model": f"{models}@1", "candidate": f"{models}@2", "candidate_share_percent": 30, **FOLLOWING, **changes}


async def until(server: Server, true: Callable[[CandidateReport | None], bool]) -> CandidateReport | None:
    async with asyncio.timeout(PATIENCE):
        while not true(seen := server.split()):  # noqa: ASYNC110 (it looks as an operator would)
            await asyncio.sleep(0.01)
    return seen


async def ask(client: Client, users: list[str], **options: str) -> list[Recommendations]:
    calls = (
        client.recommend([1, 2, 3], timeout=TIMEOUT, routing_key=user, model=options.get("model", "")) for user in users
    )
    return list(await asyncio.gather(*calls))


def test_places_are_even_and_the_same_for_ever() -> None:
    places = sorted(place_of(f"user-{number}", "shop@2") for number in range(10_000))
    assert all(abs(place - number / 10_000) < 0.03 for number, place in enumerate(places))
    assert place_of("user-1", "shop@2") == pytest.approx(0.0952, abs=0.0001)
    assert place_of("user-1", "shop@2") != place_of("user-1", "shop@3")


async def test_a_canary_answers_its_share_of_the_users_always_the_same(models: Path, serve: ServeHere) -> None:
    async with serve(**trial(models)) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        first, second = await ask(client, USERS), await ask(client, USERS)

        sides = [got.model_version for got in first]
        assert sides == [got.model_version for got in second]
        assert sides == ["shop@2" if place_of(user, "shop@2") < 0.3 else "shop@1" for user in USERS]
        for got in first:
            assert got.item_ids == answer_of(int(got.model_version.removeprefix("shop@")))
        split = server.split()
        assert split is not None
        assert split.candidate_requests == 2 * sides.count("shop@2")
        assert split.live_requests == 2 * sides.count("shop@1")


async def test_a_canary_answers_on_streams_and_in_batches_too(models: Path, serve: ServeHere) -> None:
    async with serve(**trial(models)) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        sides = [got.model_version for got in await ask(client, USERS)]
        requests = [api.RecommendRequest(item_ids=[1, 2, 3], routing_key=user) for user in USERS]

        async def sent() -> object:
            for request in requests:
                yield request

        many = await client.recommend_many(requests, timeout=TIMEOUT)
        streamed = dict([pair async for pair in client.stream(sent(), timeout=TIMEOUT)])  # type: ignore[arg-type]

        assert [getattr(got, "model_version", got) for got in many] == sides
        assert [getattr(streamed[place], "model_version", None) for place in range(len(USERS))] == sides


async def test_a_request_can_pin_either_version(models: Path, serve: ServeHere) -> None:
    async with serve(**trial(models)) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        for version in (1, 2):
            label = f"shop@{version}"
            assert {got.model_version for got in await ask(client, USERS[:50], model=label)} == {label}
        assert {got.model_version for got in await ask(client, USERS, model="shop")} == {"shop@1", "shop@2"}


async def test_a_candidate_that_is_yet_to_be_loaded_is_unavailable(models: Path, serve: ServeHere) -> None:
    async with serve(**trial(models)) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/recommend_api.v1.RecommenderService/Recommend"
        )
        request = api.RecommendRequest(item_ids=[1], model="shop@2").SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, timeout=TIMEOUT)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "is being loaded" in (refused.value.details() or "")
        await until(server, lambda split: split is not None)
        assert api.RecommendResponse.FromString(await call(request, timeout=TIMEOUT)).model_version == "shop@2"
        await channel.close()


async def test_a_shadow_is_compared_and_never_answers(models: Path, serve: ServeHere) -> None:
    shadowed = trial(models, candidate_mode="shadow", candidate_share_percent=100, candidate_max_latency_ratio=0)
    async with serve(**shadowed) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        for user in USERS[:30]:
            assert await answer(client) == ("shop@1", answer_of(1)), user
        split = await until(server, lambda split: split is not None and split.mirrored + split.shed == 30)

        assert split is not None
        both = set(answer_of(1)) & set(answer_of(2))
        assert split.mirrored > 0
        assert split.overlap == pytest.approx(len(both) / 5)
        assert split.candidate_failed == 0


@pytest.mark.slow
async def test_copies_for_a_shadow_are_left_out_under_load(models: Path, serve: ServeHere) -> None:
    write_version(models / "2", 2, burn=20)
    shadowed = trial(
        models,
        candidate_mode="shadow",
        candidate_share_percent=100,
        candidate_max_latency_ratio=0,
        candidate_max_error_percent=100,
        max_batch_size=4,
    )
    async with serve(**shadowed) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        answers = await ask(client, USERS * 3)
        assert {got.model_version for got in answers} == {"shop@1"}
        split = server.split()
        assert split is not None
        assert split.shed > 0


@pytest.mark.slow
async def test_a_slow_canary_is_rolled_back_and_the_next_version_is_tried(models: Path, serve: ServeHere) -> None:
    write_version(models / "2", 2, burn=40)
    live = write_version(models.parent / "live" / "shop" / "1", 1).parent
    settings = trial(live, candidate=models, candidate_least_requests=20, max_batch_size=4)
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        for _ in range(20):
            await ask(client, USERS[:20])
            if server.split() is None:
                break
        seen = server.followings()[1]
        assert (seen.refused, seen.serving) == ("shop@2", None)
        assert "99th percentile" in (seen.refusal or "")
        assert seen.outcomes["rolled_back"] == 1
        assert {got.model_version for got in await ask(client, USERS)} == {"shop@1"}

        write_version(models / "3", 3)
        split = await until(server, lambda split: split is not None)
        assert split is not None
        assert split.candidate == "shop@3"


async def test_what_a_canary_cannot_answer_the_live_version_does(models: Path, serve: ServeHere) -> None:
    write_version(models / "2", 2, items=60)
    settings = trial(models, candidate_share_percent=100, candidate_max_error_percent=100)
    settings |= {"model": f"{models}@2", "candidate": f"{models}@1"}
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        got = await client.recommend([1, 2, 3], timeout=TIMEOUT, limit=55)
        assert (got.model_version, len(got.item_ids)) == ("shop@2", 55)
        split = server.split()
        assert split is not None
        assert split.candidate_failed == 1


@pytest.mark.parametrize("share", [100, 30])
async def test_rows_and_calls_at_which_a_canary_fails_the_live_version_answers(
    models: Path, serve: ServeHere, share: int
) -> None:
    write_version(models / "2", 2, fails_on=UNTRIED)
    settings = trial(models, candidate_share_percent=share, candidate_max_error_percent=100)
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        await until(server, lambda split: split is not None)
        histories = [[1, 2, 3], [UNTRIED], [4, UNTRIED], [5]] * 10
        requests = [
            api.RecommendRequest(item_ids=history, routing_key=user)
            for history, user in zip(histories, USERS, strict=False)
        ]
        many = await client.recommend_many(requests, timeout=TIMEOUT)
        alone = [
            await client.recommend(history, timeout=TIMEOUT, routing_key=user)
            for history, user in zip(histories, USERS, strict=False)
        ]
        pinned = [
            api.RecommendRequest(item_ids=[UNTRIED], model="shop@2"),
            api.RecommendRequest(item_ids=[5], model="shop@2"),
        ]
        refused, answered = await client.recommend_many(pinned, timeout=TIMEOUT)
        split = server.split()

    met = [place_of(user, "shop@2") < share / 100 for user in USERS[:40]]
    sides = [
        "shop@2" if meets and UNTRIED not in history else "shop@1"
        for meets, history in zip(met, histories, strict=True)
    ]
    for got in (many, alone):
        assert [getattr(each, "model_version", each) for each in got] == sides
        for each, side, history in zip(got, sides, histories, strict=True):
            assert isinstance(each, Recommendations)
            assert each.item_ids == answer_of(int(side[-1]), tuple(history))
    assert isinstance(refused, Refusal)
    assert refused.code is grpc.StatusCode.INTERNAL
    assert isinstance(answered, Recommendations)
    assert answered.model_version == "shop@2"
    assert split is not None
    failed = sum(meets and UNTRIED in history for meets, history in zip(met, histories, strict=True))
    assert (split.candidate_requests, split.candidate_failed) == (2 * sum(met) + 2, 2 * failed + 1)


def side(requests: int, seconds: float, failures: int = 0) -> Side:
    made = Side()
    for number in range(requests):
        made.note(seconds, failed=number < failures)
    return made


@pytest.mark.parametrize(
    ("live", "candidate", "reason"),
    [
        (side(100, 0.01), side(100, 0.01), None),
        (side(100, 0.01), side(99, 1.0, 99), None),
        (side(100, 0.01), side(100, 0.01, 2), "2.0% of its requests failed, and 1.0% are allowed"),
        (side(100, 0.01, 5), side(100, 0.01, 6), None),
        (side(100, 0.01), side(100, 0.021), "2.1 times that of the live version"),
        (side(100, 0.01), side(100, 0.019), None),
        (side(100, 0.0001), side(100, 0.0009), None),
        (side(10, 0.01), side(100, 1.0), None),
    ],
)
def test_a_candidate_goes_when_it_fails_or_dawdles(live: Side, candidate: Side, reason: str | None) -> None:
    found = verdict(live, candidate, Bounds(errors=0.01, latency=2.0, least=100))
    assert (found is None) if reason is None else (reason in (found or ""))
