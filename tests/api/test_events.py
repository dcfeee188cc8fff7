"""Models that read the types and times of histories: what they are given of them, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from recommender.client import Client, Recommendations, Refusal, Request
from tests.support.models import brute_force
from tests.support.serving import Serve, Shared
from tests.support.statuses import status_of_call, violations_of
from tests.support.versions import MORNING, K, embeddings_of, write_version

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
ITEMS = 50
KEYS = ["view", "cart", "bought"]
TABLE = np.random.default_rng(4).normal(0, 2, (len(KEYS) + 1, 8)).astype(np.float32)
DAY = 86_400_000
FALLBACK = (7, 3, 11, 39, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by what their cards say: `lenient` has defaults and a type for unknown ones, `strict` has none of them."""
    folder = tmp_path_factory.mktemp("models")
    types: dict[str, Any] = {"types": TABLE, "timed": True}
    write_version(
        folder / "lenient" / "1",
        1,
        **types,
        type_keys=KEYS,
        longest_history=4,
        fallback=FALLBACK,
        history_types={"count": len(KEYS), "unknown": 0, "default": 1},
        history_times={"default": MORNING},
    )
    write_version(folder / "strict" / "1", 1, **types, keys=ITEMS, history_times={"sorted_times": True})
    write_version(folder / "plain" / "1", 1)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> dict[str, object]:
    names = ("lenient", "strict", "plain")
    return {"model": ",".join(f"{folder / name}@1" for name in names), "num_recommendations": K}


@pytest.fixture
async def client(shared: Shared, served: dict[str, object]) -> AsyncIterator[Client]:
    async with Client(f"127.0.0.1:{shared(**served).port}") as client:
        yield client


def expected(history: Sequence[int], types: Sequence[int], times: Sequence[int]) -> tuple[int, ...]:
    return tuple(brute_force(embeddings_of(1), history, K, of_types=TABLE[list(types)], times=times)[0])


async def refusal(client: Client, **options: Any) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend(timeout=TIMEOUT, **options)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return violations_of(status_of_call(refused.value))


async def test_types_by_id_and_by_key_and_times_reach_the_model(client: Client) -> None:
    history, times = [1, 2, 3], [MORNING, MORNING + 9 * DAY, MORNING + 400 * DAY]
    by_id = await client.recommend(history, history_type_ids=[3, 1, 2], history_times=times, timeout=TIMEOUT)
    keys = ["bought", "view", "cart"]
    by_key = await client.recommend(history, history_type_keys=keys, history_times=times, timeout=TIMEOUT)
    other = await client.recommend(history, history_type_ids=[1, 1, 1], history_times=times[::-1], timeout=TIMEOUT)

    assert by_id == by_key
    assert by_id.item_ids == expected(history, (3, 1, 2), times)
    assert other.item_ids == expected(history, (1, 1, 1), times[::-1])
    assert by_id.ignored_inputs == ()


async def test_what_a_request_lacks_is_the_cards_default(client: Client) -> None:
    plain = await client.recommend([1, 2], timeout=TIMEOUT)
    typed = await client.recommend([1, 2], history_type_ids=[3, 2], timeout=TIMEOUT)
    timed = await client.recommend([1, 2], history_times=[0, 10**12], limit=K, timeout=TIMEOUT)

    assert plain.item_ids == expected((1, 2), (1, 1), (MORNING, MORNING))
    assert typed.item_ids == expected((1, 2), (3, 2), (MORNING, MORNING))
    assert timed.item_ids == expected((1, 2), (1, 1), (0, 10**12))


async def test_without_a_default_a_request_without_them_is_refused(client: Client) -> None:
    reads = "model strict@1 reads {}: give one for each item of the history, in its order"
    types = {"history_type_ids": reads.format("types of events")}
    times = {"history_times": f"{reads.format('times')}, in Unix milliseconds"}

    assert await refusal(client, item_ids=[1], model="strict") == types
    assert await refusal(client, item_ids=[1], history_times=[1], model="strict") == types
    assert await refusal(client, item_ids=[1], history_type_ids=[1], model="strict") == times


async def test_a_long_history_is_cut_together_with_its_types_and_times(client: Client) -> None:
    history, types, times = [5, 6, 1, 2, 3, 4], [9, 1, 2, 3, 1, 2], [MORNING + DAY * day for day in range(6)]
    answer = await client.recommend(history, history_type_ids=types, history_times=times, timeout=TIMEOUT)

    assert answer.item_ids == expected(history[2:], types[2:], times[2:])


@pytest.mark.parametrize("by", ["item_ids", "item_keys"])
async def test_unknown_items_take_their_types_and_times_with_them(client: Client, by: str) -> None:
    history, types, times = [9, 50, 1, 2, 99, 3], [1, 3, 3, 2, 9, 1], [MORNING + 50 * DAY * day for day in range(6)]
    named: dict[str, Any] = {by: history if by == "item_ids" else [f"v1-{item}" for item in history]}
    answer = await client.recommend(
        **named, history_type_ids=types, history_times=times, model="strict", timeout=TIMEOUT
    )
    kept = [0, 2, 3, 5]

    assert answer.item_ids == expected(*([each[place] for place in kept] for each in (history, types, times)))
    assert answer.unknown_item_ids == (() if by == "item_keys" else (50, 99))


async def test_an_unknown_item_before_a_cut_history_shifts_nothing(client: Client) -> None:
    history, types, times = [1, 50, 2, 3, 99, 4, 5], [1, 9, 2, 3, 1, 2, 3], [MORNING + DAY * day for day in range(7)]
    answer = await client.recommend(history, history_type_ids=types, history_times=times, timeout=TIMEOUT)
    kept = [2, 3, 5, 6]

    assert answer.item_ids == expected(*([each[place] for place in kept] for each in (history, types, times)))


async def test_nothing_known_of_the_history_leaves_the_fallback_list(client: Client) -> None:
    answer = await client.recommend([50, 51], history_type_ids=[7, 8], history_times=[2, 1], timeout=TIMEOUT)

    assert (answer.item_ids, answer.is_fallback) == (FALLBACK, True)


async def test_an_unknown_type_is_what_the_card_says(client: Client) -> None:
    by_id = await client.recommend([1, 2], history_type_ids=[9, 2], timeout=TIMEOUT)
    by_key = await client.recommend([1, 2], history_type_keys=["none", "cart"], timeout=TIMEOUT)

    assert by_id.item_ids == by_key.item_ids == expected((1, 2), (0, 2), (MORNING, MORNING))
    assert await refusal(
        client, item_ids=[1, 50, 2, 3], history_type_ids=[1, 9, 0, 4], history_times=[1, 1, 1, 1], model="strict"
    ) == {
        "history_type_ids[2]": "0 is unknown: model strict@1 knows the types 1 to 3",
        "history_type_ids[3]": "4 is unknown: model strict@1 knows the types 1 to 3",
    }


async def test_times_out_of_order_are_passed_unless_the_card_wants_them_sorted(client: Client) -> None:
    times = [MORNING + DAY, MORNING]
    answer = await client.recommend([1, 2], history_times=times, timeout=TIMEOUT)
    equal = await client.recommend(
        [1, 2], history_type_ids=[1, 1], history_times=[5, 5], model="strict", timeout=TIMEOUT
    )

    assert answer.item_ids == expected((1, 2), (1, 1), times)
    assert equal.item_ids == expected((1, 2), (1, 1), (5, 5))
    assert await refusal(client, item_ids=[1, 2], history_type_ids=[1, 1], history_times=times, model="strict") == {
        "history_times[1]": f"{MORNING} is before {MORNING + DAY}, the time of the item before it, and model strict@1 "
        "takes times that ascend only: send the oldest item first"
    }


@pytest.mark.parametrize(
    ("options", "field", "sentence"),
    [
        ({"history_times": [1]}, "history_times", "its length is 1 and that of the history 2"),
        ({"history_type_ids": [1, 2, 3]}, "history_type_ids", "its length is 3 and that of the history 2"),
        ({"history_times": [5, -1]}, "history_times[1]", "must be greater than or equal to 0, not -1"),
        ({"history_times": [-(2**63), 0]}, "history_times[0]", "must be greater than or equal to 0"),
        ({"history_type_keys": ["view", "ä" * (1 << 20)]}, "history_type_keys[1]", "must be at most 256 bytes"),
        ({"history_type_keys": ["a", "b"], "model": "strict"}, "history_type_keys", "has no keys for types of events"),
        ({"user_id": 1, "model": "strict"}, "user_id", "strict@1 takes no user, but types of events and times: leave"),
        ({"history_times": [1, 2], "model": "plain"}, "history_times", "model plain@1 takes no times"),
        ({"history_type_keys": ["a", "b"], "model": "plain"}, "history_type_keys", "plain@1 takes no types of events"),
    ],
)
async def test_hostile_types_and_times_are_refused_with_a_sentence_and_harm_nobody_else(
    client: Client, options: dict[str, Any], field: str, sentence: str
) -> None:
    hostile = Request(item_ids=[1, 2], **options)
    good = Request(item_ids=[1, 2], history_type_ids=[1, 2], history_times=[3, 4])
    before, refused, after = await client.recommend_many([good, hostile, good], timeout=TIMEOUT)
    found = await refusal(client, item_ids=[1, 2], **options)

    assert isinstance(before, Recommendations)
    assert isinstance(after, Recommendations)
    assert before.item_ids == after.item_ids == expected((1, 2), (1, 2), (3, 4))
    assert isinstance(refused, Refusal)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(found) == [field]
    assert sentence in found[field]
    assert len(found[field]) < 300


async def test_rows_with_and_without_types_and_times_share_batches_and_keep_their_own_answers(client: Client) -> None:
    drawn = np.random.default_rng(6)
    rows: list[tuple[list[int], dict[str, list[int]]]] = []
    for row in range(64):
        size = 1 + row % 4
        beside = {
            "history_type_ids": drawn.integers(1, 4, size).tolist(),
            "history_times": (MORNING + drawn.integers(0, 400 * DAY, size)).tolist(),
        }
        names = list(beside)[row % 2 :] if row % 3 else []
        rows.append((drawn.integers(0, ITEMS, size).tolist(), {name: beside[name] for name in names}))
    answers = await asyncio.gather(*(client.recommend(history, timeout=TIMEOUT, **beside) for history, beside in rows))  # type: ignore[arg-type]

    for (history, beside), answer in zip(rows, answers, strict=True):
        types = beside.get("history_type_ids", [1] * len(history))
        assert answer.item_ids == expected(history, types, beside.get("history_times", [MORNING] * len(history)))


async def test_types_and_times_for_a_model_that_takes_none_can_be_reported_instead(serve: Serve, folder: Path) -> None:
    async with (
        serve(model=f"{folder / 'plain'}@1", num_recommendations=K, unknown_inputs="report") as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        answer = await client.recommend([1], history_type_keys=["a"], history_times=[5], timeout=TIMEOUT)
        without = await client.recommend([1], timeout=TIMEOUT)

    assert (answer.item_ids, answer.ignored_inputs) == (without.item_ids, ("history_type_keys", "history_times"))


async def test_a_model_says_what_it_reads_of_histories(client: Client) -> None:
    described = {model.name: model for model in await client.list_models(timeout=TIMEOUT)}

    assert {
        name: (each.history_types, each.first_history_type, each.has_history_type_keys, each.takes_history_times)
        for name, each in described.items()
    } == {"lenient": (3, 1, True, True), "strict": (3, 1, False, True), "plain": (0, 0, False, False)}
