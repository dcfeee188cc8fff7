"""Models that take users: known ones, unknown ones, and requests for models that take none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest

from recommender.client import Client, Recommendations, Request
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.models import brute_force
from tests.support.serving import Serve, Shared
from tests.support.statuses import status_of_call, violations_of
from tests.support.versions import K, embeddings_of, write_version

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
USERS = 6
KEYS = [f"user/{number}-ä" for number in range(1, USERS + 1)]
FALLBACK = (7, 3, 11, 39, 0)
TABLE = np.random.default_rng(3).normal(0, 2, (USERS + 1, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models named by how they rank for an unknown user; `plain` takes no user."""
    folder = tmp_path_factory.mktemp("models")
    write_version(folder / "row" / "1", 1, users=TABLE, user_keys=KEYS)
    write_version(folder / "history" / "1", 1, users=TABLE, unknown_user="history", fallback=FALLBACK)
    write_version(folder / "fallback" / "1", 1, users=TABLE, unknown_user="fallback", fallback=FALLBACK)
    write_version(folder / "nothing" / "1", 1, users=TABLE, unknown_user="fallback", first_user=0)
    write_version(folder / "plain" / "1", 1)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> dict[str, object]:
    names = ("row", "history", "fallback", "nothing", "plain")
    return {"model": ",".join(f"{folder / name}@1" for name in names), "num_recommendations": K}


@pytest.fixture
async def client(shared: Shared, served: dict[str, object]) -> AsyncIterator[Client]:
    async with Client(f"127.0.0.1:{shared(**served).port}") as client:
        yield client


def expected(history: Sequence[int], user: int) -> tuple[int, ...]:
    return tuple(brute_force(embeddings_of(1), history, K, TABLE[user])[0])


async def refusal(client: Client, **options: object) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend(timeout=TIMEOUT, **options)  # type: ignore[arg-type]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return violations_of(status_of_call(refused.value))


@pytest.mark.parametrize("history", [(), (1, 2, 3)])
async def test_a_known_user_is_ranked_for_by_id_and_by_key_with_and_without_a_history(
    client: Client, history: tuple[int, ...]
) -> None:
    for number in range(1, USERS + 1):
        by_id = await client.recommend(history, user_id=number, timeout=TIMEOUT)
        by_key = await client.recommend(history, user_key=KEYS[number - 1], timeout=TIMEOUT)

        assert by_id == by_key
        assert by_id.item_ids == expected(history, number)
        assert (by_id.is_user_alone, by_id.unknown_user, by_id.is_fallback) == (not history, False, False)


async def test_rows_with_and_without_a_user_share_batches_and_keep_their_own_answers(client: Client) -> None:
    asked = [(tuple(range(row % 4)), row % (USERS + 1)) for row in range(64)]
    answers = await asyncio.gather(
        *(client.recommend(history, user_id=user, timeout=TIMEOUT) for history, user in asked),
        *(client.recommend(history, timeout=TIMEOUT) for history, _ in asked if history),
    )

    assert [answer.item_ids for answer in answers[: len(asked)]] == [expected(*row) for row in asked]
    assert [answer.item_ids for answer in answers[len(asked) :]] == [
        expected(history, 0) for history, _ in asked if history
    ]


async def test_a_history_without_a_known_item_leaves_the_user_alone(client: Client) -> None:
    answer = await client.recommend([50, 99], user_id=2, exclude_history=True, timeout=TIMEOUT)

    assert answer.item_ids == expected((), 2)
    assert answer.is_user_alone
    assert answer.unknown_item_ids == (50, 99)


@pytest.mark.parametrize("user", [{"user_id": 0}, {"user_id": USERS + 1}, {"user_id": 2**63 - 1}, {"user_key": "none"}])
async def test_an_unknown_user_is_ranked_for_by_the_row_that_the_model_has_for_it(
    client: Client, user: dict[str, int]
) -> None:
    with_history = await client.recommend([1, 2], timeout=TIMEOUT, **user)  # type: ignore[arg-type]
    without = await client.recommend(timeout=TIMEOUT, **user)  # type: ignore[arg-type]

    assert (with_history.item_ids, without.item_ids) == (expected((1, 2), 0), expected((), 0))
    assert with_history.unknown_user
    assert without.unknown_user
    assert (with_history.is_user_alone, without.is_user_alone) == (False, True)


async def test_nobody_is_ranked_for_as_an_unknown_user(client: Client) -> None:
    answer = await client.recommend(timeout=TIMEOUT)

    assert answer.item_ids == expected((), 0)
    assert (answer.is_user_alone, answer.unknown_user) == (True, False)


async def test_without_such_a_row_an_unknown_user_is_ranked_for_by_the_history_else_by_the_fallback_list(
    client: Client,
) -> None:
    by_history = await client.recommend([1, 2], user_id=99, model="history", timeout=TIMEOUT)
    by_list = await client.recommend(user_id=99, model="history", timeout=TIMEOUT)
    known = await client.recommend(user_id=3, model="history", timeout=TIMEOUT)

    assert (by_history.item_ids, by_history.unknown_user, by_history.is_fallback) == (expected((1, 2), 0), True, False)
    assert (by_list.item_ids, by_list.unknown_user, by_list.is_fallback) == (FALLBACK, True, True)
    assert (known.item_ids, known.is_user_alone) == (expected((), 3), True)


@pytest.mark.parametrize("options", [{"item_ids": [1, 2]}, {"item_ids": [1], "user_id": 99}, {}])
async def test_a_model_of_known_users_only_answers_others_from_the_fallback_list(
    client: Client, options: dict[str, object]
) -> None:
    answer = await client.recommend(model="fallback", timeout=TIMEOUT, **options)  # type: ignore[arg-type]

    assert (answer.item_ids, answer.is_fallback) == (FALLBACK, True)
    assert answer.unknown_user == ("user_id" in options)


async def test_a_model_of_known_users_only_without_a_fallback_list_refuses_others(client: Client) -> None:
    first = await client.recommend([1], user_id=0, model="nothing", timeout=TIMEOUT)
    ranks = "model nothing@1 ranks for its known users only, ids 0 to 6, and has no fallback list"

    assert (first.item_ids, first.unknown_user) == (expected((1,), 0), False)
    assert await refusal(client, item_ids=[1], model="nothing") == {
        "user_id": f"the request names no user, and {ranks}"
    }
    assert await refusal(client, user_id=7, model="nothing") == {"user_id": f"the user is not known: {ranks}"}


async def test_a_user_for_a_model_that_takes_none_is_refused(client: Client) -> None:
    assert await refusal(client, item_ids=[1], user_id=1, model="plain") == {
        "user_id": "model plain@1 takes no user: leave user_id out"
    }
    assert await refusal(client, item_ids=[1], user_key="a", model="plain") == {
        "user_key": "model plain@1 takes no user: leave user_key out"
    }


async def test_a_user_for_a_model_that_takes_none_can_be_reported_instead(serve: Serve, folder: Path) -> None:
    async with (
        serve(model=f"{folder / 'plain'}@1", num_recommendations=K, unknown_inputs="report") as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        answer = await client.recommend([1], user_key="a", timeout=TIMEOUT)
        (without,) = await client.recommend_many([Request(item_ids=[1])], timeout=TIMEOUT)

    assert isinstance(without, Recommendations)
    assert (answer.item_ids, answer.ignored_inputs) == (without.item_ids, ("user_key",))
    assert without.ignored_inputs == ()


@pytest.mark.parametrize(
    ("options", "field", "sentence"),
    [
        ({"user_id": -1}, "user_id", "must be greater than or equal to 0, not -1"),
        ({"user_id": 1, "user_key": "a"}, "", "only one of user_key, user_id can be set"),
        ({"user_key": "a" * 257}, "user_key", "must be at most 256 bytes"),
        ({"user_key": "ä" * (1 << 20)}, "user_key", "must be at most 256 bytes"),
        ({"user_key": "a", "model": "history"}, "user_key", "model history@1 has no keys for users: name the user by"),
    ],
)
async def test_a_user_that_cannot_be_is_refused_with_a_sentence(
    client: Client, options: dict[str, object], field: str, sentence: str
) -> None:
    found = await refusal(client, item_ids=[1], **options)

    assert list(found) == [field]
    assert sentence in found[field]
    assert len(found[field]) < 300


async def test_a_model_says_how_many_users_it_takes(client: Client) -> None:
    described = {model.name: model for model in await client.list_models(timeout=TIMEOUT)}
    users = {name: (each.users, each.first_user, each.has_user_keys) for name, each in described.items()}

    assert users == {
        "row": (USERS, 1, True),
        "history": (USERS, 1, False),
        "fallback": (USERS, 1, False),
        "nothing": (USERS + 1, 0, False),
        "plain": (0, 0, False),
    }


async def test_the_reply_names_its_source(shared: Shared, served: dict[str, object]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{shared(**served).port}") as channel:
        recommend: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/recommend_api.v1.RecommenderService/Recommend"
        )
        request = api.RecommendRequest(user_id=1).SerializeToString()
        reply = api.RecommendResponse.FromString(await recommend(request, timeout=TIMEOUT))

    assert reply.source == api.SOURCE_USER
