"""Models that take features: typed, bounded, with defaults; rows with and without them in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from recommender.client import Client, Recommendations, Refusal, Request, feature_value
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.feature_models import DECLARED, vector_of
from tests.support.models import brute_force
from tests.support.serving import Shared
from tests.support.statuses import status_of_call, violations_of
from tests.support.versions import K, embeddings_of, write_version

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
USERS = np.random.default_rng(3).normal(0, 1, (7, 8)).astype(np.float32)
NEEDED = tuple({**each, "default": None} if each["name"] in ("level", "tastes") else each for each in DECLARED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_version(folder / "shop" / "1", 1, users=USERS, featured=True)
    free: dict[str, Any] = {"unknown_user": "history", "reads_history": False}
    write_version(folder / "free" / "1", 1, users=USERS, featured=True, **free)
    write_version(folder / "needy" / "1", 1, users=USERS, featured=True, features=NEEDED)
    return folder


@pytest.fixture
async def client(shared: Shared, folder: Path) -> AsyncIterator[Client]:
    names = ",".join(f"{folder / name}@1" for name in ("shop", "needy", "free"))
    async with Client(f"127.0.0.1:{shared(model=names, num_recommendations=K).port}") as client:
        yield client


def expected(history: tuple[int, ...], user: int, features: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(brute_force(embeddings_of(1), history, K, USERS[user] + vector_of(features))[0])


async def refusal(client: Client, **options: Any) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend([1, 2], timeout=TIMEOUT, **options)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return violations_of(status_of_call(refused.value))


GIVEN: tuple[Mapping[str, Any], ...] = (
    {},
    {"age": 64.0},
    {"age": 7},
    {"city": "köln"},
    {"city": "nowhere"},
    {"city": ""},
    {"city": "\0"},
    {"level": 2, "premium": True},
    {"tastes": [0.25, 8.0]},
    {"tastes": [1, 2], "city": "rome", "level": 0, "age": 120.0, "premium": False},
)


async def test_rows_with_and_without_features_share_batches_and_keep_their_own_answers(client: Client) -> None:
    asked = [(tuple(range(row % 3)), row % 7, GIVEN[row % len(GIVEN)]) for row in range(60)]
    answers = await asyncio.gather(
        *(
            client.recommend(history, user_id=user, features=features, timeout=TIMEOUT)
            for history, user, features in asked
        ),
        *(client.recommend(history, timeout=TIMEOUT) for history, _, _ in asked if history),
    )

    assert [answer.item_ids for answer in answers[: len(asked)]] == [expected(*row) for row in asked]
    assert [answer.item_ids for answer in answers[len(asked) :]] == [
        expected(history, 0, {}) for history, _, _ in asked if history
    ]


async def test_features_that_a_model_needs_must_be_there_and_others_have_their_defaults(client: Client) -> None:
    given: Mapping[str, Any] = {"level": 0, "tastes": [1.5, 2.0]}
    answer = await client.recommend([1], features=given, model="needy", timeout=TIMEOUT)

    assert answer.item_ids == expected((1,), 0, given)
    assert await refusal(client, model="needy") == {
        "features[level]": "model needy@1 needs one int64 here, which has no default",
        "features[tastes]": "model needy@1 needs a list of 2 float32 here, which has no default",
    }
    assert list(await refusal(client, model="needy", features={"level": 1})) == ["features[tastes]"]


@pytest.mark.parametrize("key", ["", "any"])
async def test_a_model_that_reads_no_history_ranks_by_features_alone(client: Client, key: str) -> None:
    answer = await client.recommend(features={"age": 64.0}, model="free", routing_key=key, timeout=TIMEOUT)
    nothing = await client.recommend(model="free", routing_key=key, timeout=TIMEOUT)
    stranger = await client.recommend(user_id=99, model="free", routing_key=key, timeout=TIMEOUT)

    assert (answer.item_ids, answer.is_user_alone) == (expected((), 0, {"age": 64.0}), True)
    assert nothing.item_ids == stranger.item_ids == expected((), 0, {})
    assert stranger.unknown_user


TAKES = "model shop@1 takes"
WRONG: tuple[tuple[Mapping[str, Any], str, str], ...] = (
    ({"age": "old"}, "age", f"{TAKES} one float32 here, not one string"),
    ({"age": True}, "age", f"{TAKES} one float32 here, not one bool"),
    ({"age": [1.0]}, "age", f"{TAKES} one float32 here, not a list of double"),
    ({"level": 1.0}, "level", f"{TAKES} one int64 here, not one double"),
    ({"level": 3}, "level", f"{TAKES} no number above 2 here, and 3 is"),
    ({"level": -(2**63)}, "level", f"{TAKES} no number below 0 here"),
    ({"city": 1}, "city", f"{TAKES} one string here, not one int64"),
    ({"premium": 1}, "premium", f"{TAKES} one bool here, not one int64"),
    ({"tastes": 0.5}, "tastes", f"{TAKES} a list of 2 float32 here, not one double"),
    ({"tastes": [1.0, 2.0, 3.0]}, "tastes", f"{TAKES} a list of 2 float32 here, not 3"),
    ({"tastes": []}, "tastes", f"{TAKES} a list of 2 float32 here, not 0"),
    ({"tastes": [0.0, 1e300]}, "tastes", f"{TAKES} no number above 3.40282e+38 here, and 1e+300 is"),
    ({"aeg": 3}, "aeg", f"{TAKES} no such feature, but age, city, level, premium, tastes: leave features[aeg] out"),
)


@pytest.mark.parametrize(("features", "name", "sentence"), WRONG)
async def test_features_that_a_model_cannot_take_are_refused_with_a_sentence(
    client: Client, features: Mapping[str, Any], name: str, sentence: str
) -> None:
    found = await refusal(client, features=features)

    assert list(found) == [f"features[{name}]"]
    assert sentence in found[f"features[{name}]"]


async def test_only_the_sender_of_wrong_features_is_harmed(client: Client) -> None:
    rows: list[Mapping[str, Any]] = [{"level": 1}, {"level": 7}, {"age": 1.0}, {"age": "x"}]
    requests = [Request(item_ids=[1], features={k: feature_value(v) for k, v in row.items()}) for row in rows]
    outcomes = await client.recommend_many(requests, timeout=TIMEOUT)

    assert [type(outcome) for outcome in outcomes] == [Recommendations, Refusal, Recommendations, Refusal]
    for outcome, row in zip(outcomes[::2], rows[::2], strict=True):
        assert isinstance(outcome, Recommendations)
        assert outcome.item_ids == expected((1,), 0, row)


async def test_a_short_way_and_the_general_way_come_to_the_same(client: Client) -> None:
    for features in (*GIVEN, *(wrong for wrong, _, _ in WRONG)):
        named = {name: feature_value(value) for name, value in features.items()}
        one, other = await client.recommend_many(
            [
                Request(item_ids=[1, 2], user_id=3, features=named),
                Request(item_ids=[1, 2], user_id=3, features=named, routing_key="any"),
            ],
            timeout=TIMEOUT,
        )

        assert one == other


async def test_a_model_says_which_features_it_takes(client: Client) -> None:
    described = (await client.get_model("needy", timeout=TIMEOUT)).features
    told = [(each.name, each.type, each.width, each.has_default) for each in described]

    assert told == [
        ("age", api.FEATURE_TYPE_FLOAT, 0, True),
        ("city", api.FEATURE_TYPE_STRING, 0, True),
        ("level", api.FEATURE_TYPE_INT64, 0, False),
        ("premium", api.FEATURE_TYPE_BOOL, 0, True),
        ("tastes", api.FEATURE_TYPE_FLOAT, 2, False),
    ]
