"""What a caller gets: over a real channel, from a real server, from the real reference model."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
import pytest

from recommender.client import Client, Recommendations
from recommender.domain import Ranking
from recommender.models.card import Card
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc
from tests.support.facts import FACTS
from tests.support.models import table, write_model, write_older_model
from tests.support.paths import WEIGHTS
from tests.support.serving import AnyServer, Serve
from tests.support.statuses import status_of_call, violations_of

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0


def tolerance() -> float:
    return Card.model_validate_json((WEIGHTS / "10_model.card.json").read_bytes()).score_tolerance


def ranking(answer: Recommendations) -> Ranking:
    return Ranking(list(answer.item_ids), list(answer.scores))


async def violations(client: Client, item_ids: list[int], *, limit: int = 0) -> dict[str, str]:
    """The field violations that a request is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend(item_ids, limit=limit, timeout=TIMEOUT)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = status_of_call(refused.value)
    assert status.message == refused.value.details()
    return violations_of(status)


@pytest.mark.parametrize(("history", "expected"), FACTS.items())
async def test_the_reference_model_gives_its_known_answers(
    client: Client, history: tuple[int, ...], expected: list[int]
) -> None:
    answer = await client.recommend(history, timeout=TIMEOUT)

    assert list(answer.item_ids) == expected
    assert list(answer.scores) == sorted(answer.scores, reverse=True)
    assert answer.model_version == "reference@1"


@pytest.mark.parametrize("limit", [1, 3, 10, 11, 1000])
async def test_a_limit_cuts_or_extends_the_answer(client: Client, limit: int) -> None:
    answer = await client.recommend([1, 2, 3, 4], limit=limit, timeout=TIMEOUT)

    known = FACTS[1, 2, 3, 4]
    assert len(answer.item_ids) == limit
    assert list(answer.item_ids[:10]) == known[:limit]


async def test_the_configured_number_picks_the_model_and_is_the_limit_of_who_sets_none(serve: Serve) -> None:
    async with serve(num_recommendations=5) as server, Client(f"127.0.0.1:{server.port}") as client:
        answer = await client.recommend([1, 2, 3, 4], timeout=TIMEOUT)

    assert list(answer.item_ids) == FACTS[1, 2, 3, 4][:5]


async def test_two_hundred_at_once_get_what_each_gets_alone_in_fewer_runs(server: AnyServer, client: Client) -> None:
    drawn = random.Random(3)
    histories = [[drawn.randrange(10_000) for _ in range(drawn.randint(1, 60))] for _ in range(200)]
    alone = [await client.recommend(history, timeout=TIMEOUT) for history in histories]
    before = sum(server.batcher.statistics().batches.values())

    together = await asyncio.gather(*(client.recommend(history, timeout=TIMEOUT) for history in histories))

    runs = sum(server.batcher.statistics().batches.values()) - before
    assert runs < len(histories)
    for one, other in zip(alone, together, strict=True):
        assert ranking(one).equals(ranking(other), tolerance())


async def test_an_id_beyond_the_catalogue_is_left_out_of_the_history(client: Client) -> None:
    answer = await client.recommend([1, 10_000, 2, 3, 2**31 - 1, 4], timeout=TIMEOUT)

    assert list(answer.item_ids) == FACTS[1, 2, 3, 4]


async def test_a_history_of_strangers_only_is_refused(client: Client) -> None:
    found = await violations(client, [10_000, 12_345])

    assert list(found) == ["item_ids"]
    assert "no item of the catalogue: its ids are 0 to 9999" in found["item_ids"]
    assert "no fallback list" in found["item_ids"]


async def test_an_empty_history_is_refused(client: Client) -> None:
    assert list(await violations(client, [])) == ["item_ids"]


async def test_each_negative_id_is_named_with_its_place(client: Client) -> None:
    found = await violations(client, [1, -7, 3, -(2**31)])

    assert found == {
        "item_ids[1]": "must be greater than or equal to 0, not -7",
        "item_ids[3]": "must be greater than or equal to 0, not -2147483648",
    }


@pytest.mark.parametrize("length", [1, 32, 33, 256, 257, 1000])
async def test_a_strange_id_is_found_in_a_history_of_any_length(client: Client, length: int) -> None:
    for place in {0, length // 2, length - 1}:
        history = [7] * length
        history[place] = -1
        assert set(await violations(client, history)) == {f"item_ids[{place}]"}

        history[place] = 10_000
        if length > 1:
            answer = await client.recommend(history, timeout=TIMEOUT)
            assert answer.unknown_item_ids == (10_000,)


async def test_a_history_full_of_negative_ids_gets_a_small_status(client: Client) -> None:
    assert len(await violations(client, [-1] * 4096)) == 10


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (-1, "must be greater than or equal to 0 and less than or equal to 10000, not -1"),
        (1001, "1001 is more than the 1000 that model reference@1 returns"),
        (2**31 - 1, "must be greater than or equal to 0 and less than or equal to 10000, not 2147483647"),
    ],
)
async def test_a_limit_out_of_range_is_refused_with_the_range(client: Client, limit: int, reason: str) -> None:
    assert await violations(client, [1], limit=limit) == {"limit": reason}


async def test_a_history_over_the_hard_limit_is_refused(serve: Serve) -> None:
    async with serve(max_history=3) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert "more than the 3" in (await violations(client, [1, 2, 3, 4]))["item_ids"]
        assert list((await client.recommend([1, 2, 3], timeout=TIMEOUT)).item_ids)


async def test_a_history_longer_than_the_model_reads_is_cut_to_its_most_recent_items(
    serve: Serve, tmp_path: Path
) -> None:
    told = {"items": "50", "default_k": "5", "max_k": "50", "longest_history": "2"}
    model = write_model(tmp_path / "5_model.onnx", table(), metadata=told)
    async with (
        serve(model=model, num_recommendations=5) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        cut = await client.recommend([9, 8, 7, 1, 2], timeout=TIMEOUT)
        short = await client.recommend([1, 2], timeout=TIMEOUT)

    assert cut == short


async def test_a_model_that_does_not_tell_its_catalogue_fails_only_the_row_with_a_strange_id(
    serve: Serve, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(items=50), metadata={})
    async with (
        serve(model=model, num_recommendations=5, default_timeout_ms=20_000) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        answers = await asyncio.gather(
            *(client.recommend([1, 50 if row == 13 else 2], timeout=TIMEOUT) for row in range(32)),
            return_exceptions=True,
        )

    refused = answers.pop(13)
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert all(isinstance(answer, Recommendations) for answer in answers)


async def test_the_older_form_of_a_model_is_served_row_by_row(serve: Serve, tmp_path: Path) -> None:
    model = write_older_model(tmp_path / "4_model.onnx", table(), k=4)
    batched = write_model(tmp_path / "batched.onnx", table())
    async with (
        serve(model=model, num_recommendations=4) as older,
        serve(model=batched, num_recommendations=4) as newer,
        Client(f"127.0.0.1:{older.port}") as old_client,
        Client(f"127.0.0.1:{newer.port}") as new_client,
    ):
        histories = [[1, 2, 3], [4], [5, 6]]
        old = await asyncio.gather(*(old_client.recommend(history, timeout=TIMEOUT) for history in histories))
        new = await asyncio.gather(*(new_client.recommend(history, timeout=TIMEOUT) for history in histories))
        assert "limit" in await violations(old_client, [1], limit=5)

    assert [answer.item_ids for answer in old] == [answer.item_ids for answer in new]
    assert [answer.scores for answer in old] == [(), (), ()]


async def test_a_message_that_is_no_request_harms_only_who_sent_it(server: AnyServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/recommend_api.v1.RecommenderService/Recommend"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await raw(b"\xff\xff\xff nonsense", timeout=TIMEOUT)
        stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(channel)
        answer = await stub.Recommend(api.RecommendRequest(item_ids=[0]), timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == (
        "the message is not a recommend_api.v1.RecommendRequest; generate the client from the proto"
    )
    assert list(answer.item_ids) == FACTS[0,]
