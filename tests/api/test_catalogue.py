"""Real catalogues: keys of items, fallback lists, unknown users, and models that describe themselves."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from recommender.client import Client, Refusal, Request, SyncClient
from recommender.models.artifact import open_artifact
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.settings.network import Edge
from tests.support.catalogues import add_fallback, add_vocabulary, export_catalogue
from tests.support.facts import FACTS
from tests.support.models import table, write_model, write_older_model
from tests.support.paths import WEIGHTS
from tests.support.serving import AnyServer, Serve, Shared, served
from tests.support.statuses import status_of_call, violations_of

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
ITEMS = 40
KEYS = [f"sku/{item:03d}-ä" for item in range(ITEMS)]
FALLBACK = [7, 3, 11, 39, 0]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with keys and a fallback list."""
    model = export_catalogue(tmp_path_factory.mktemp("keys"), ITEMS)
    add_vocabulary(model, KEYS)
    add_fallback(model, FALLBACK)
    return model


@pytest.fixture
async def keyed(shared: Shared, catalogue: Path) -> AsyncIterator[Client]:
    async with Client(f"127.0.0.1:{shared(model=catalogue).port}") as client:
        yield client


async def refusal(client: Client, **options: object) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.recommend(timeout=TIMEOUT, **options)  # type: ignore[arg-type]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return violations_of(status_of_call(refused.value))


async def test_keys_and_ids_name_the_same_items(keyed: Client) -> None:
    by_ids = await keyed.recommend([1, 2, 3], excluded_item_ids=[5], candidate_item_ids=[4, 5, 6, 7], timeout=TIMEOUT)
    by_keys = await keyed.recommend(
        item_keys=[KEYS[1], KEYS[2], KEYS[3]],
        excluded_item_keys=[KEYS[5]],
        candidate_item_keys=[KEYS[4], KEYS[5], KEYS[6], KEYS[7]],
        timeout=TIMEOUT,
    )

    assert by_keys == by_ids
    assert sorted(by_keys.item_ids) == [4, 6, 7]
    assert list(by_keys.item_keys) == [KEYS[item] for item in by_keys.item_ids]


async def test_unknown_keys_are_left_out_and_reported_once(keyed: Client) -> None:
    answer = await keyed.recommend(
        item_keys=["nothing", KEYS[1], "nothing", "sku/"], excluded_item_keys=["nothing", "other"], timeout=TIMEOUT
    )

    assert answer.unknown_item_keys == ("nothing", "sku/", "other")
    assert answer.item_ids == (await keyed.recommend([1], timeout=TIMEOUT)).item_ids


async def test_a_key_in_another_form_of_unicode_is_another_key(keyed: Client) -> None:
    decomposed = unicodedata.normalize("NFD", KEYS[1])
    answer = await keyed.recommend(item_keys=[decomposed, KEYS[2]], timeout=TIMEOUT)

    assert decomposed != KEYS[1]
    assert answer.unknown_item_keys == (decomposed,)


@pytest.mark.parametrize(
    "pair",
    [
        ("item_ids", "item_keys"),
        ("excluded_item_ids", "excluded_item_keys"),
        ("candidate_item_ids", "candidate_item_keys"),
    ],
)
async def test_a_list_by_ids_and_by_keys_at_once_is_refused(keyed: Client, pair: tuple[str, str]) -> None:
    by_ids, by_keys = pair
    found = await refusal(keyed, **{"item_ids": [1], by_ids: [1], by_keys: [KEYS[1]]})

    assert found == {"": f"only one of {by_ids}, {by_keys} can be set"}


async def test_keys_for_a_model_without_a_vocabulary_are_refused(client: Client) -> None:
    found = await refusal(client, item_keys=["a"])

    assert found == {"item_keys": "model reference@1 has no vocabulary: name items by ids"}


@pytest.mark.parametrize("options", [{}, {"item_ids": [ITEMS, 2**31 - 1]}, {"item_keys": ["nothing"]}])
async def test_who_is_not_known_gets_the_fallback_list(keyed: Client, options: dict[str, list[int]]) -> None:
    answer = await keyed.recommend(timeout=TIMEOUT, limit=3, **options)  # type: ignore[arg-type]

    assert answer.is_fallback
    assert list(answer.item_ids) == FALLBACK[:3]
    assert list(answer.item_keys) == [KEYS[item] for item in FALLBACK[:3]]
    assert answer.scores == ()


async def test_the_fallback_list_keeps_to_exclusions_and_candidates(keyed: Client) -> None:
    without = await keyed.recommend(excluded_item_ids=[7, 11], timeout=TIMEOUT)
    among = await keyed.recommend(candidate_item_ids=[11, 7, 8], timeout=TIMEOUT)

    assert list(without.item_ids) == [3, 39, 0]
    assert list(among.item_ids) == [7, 11]


async def test_without_a_fallback_list_who_is_not_known_is_refused(client: Client) -> None:
    assert "no fallback list" in (await refusal(client))["item_ids"]


async def test_who_asks_by_keys_is_told_of_keys(serve: Serve, tmp_path: Path) -> None:
    model = export_catalogue(tmp_path, ITEMS)
    add_vocabulary(model, KEYS)
    async with serve(model=model) as server, Client(f"127.0.0.1:{server.port}") as client:
        found = await refusal(client, item_keys=["nothing", "no one"])

    (told,) = found.values()
    assert found.keys() == {"item_keys"}
    assert told.startswith("the vocabulary has no key of the history")


async def test_strangers_can_be_refused_instead(serve: Serve, catalogue: Path) -> None:
    async with serve(model=catalogue, unknown_items="reject") as server, Client(f"127.0.0.1:{server.port}") as client:
        by_ids = await refusal(client, item_ids=[1, ITEMS], excluded_item_ids=[2])
        excluded = await refusal(client, item_ids=[1], excluded_item_ids=[2, 99])
        by_keys = await refusal(client, item_keys=[KEYS[1], "nothing"])
        known = await client.recommend([1], timeout=TIMEOUT)

    assert by_ids == {"item_ids[1]": "40 is unknown: the catalogue has the ids 0 to 39"}
    assert list(excluded) == ["excluded_item_ids[1]"]
    assert by_keys == {"item_keys[1]": "'nothing' is unknown: the vocabulary does not have it"}
    assert known.item_ids


async def test_candidates_of_which_none_is_left_are_an_empty_answer(keyed: Client) -> None:
    answer = await keyed.recommend([1], candidate_item_ids=[5], excluded_item_ids=[5], timeout=TIMEOUT)

    assert answer.item_ids == ()
    assert not answer.is_fallback


async def test_what_a_model_lacks_the_inputs_for_is_refused_and_never_a_short_list(
    serve: Serve, tmp_path: Path
) -> None:
    plain = write_model(tmp_path / "5_model.onnx", table())
    older = write_older_model(tmp_path / "older.onnx", table(), k=5)
    async with (
        serve(model=plain, num_recommendations=5) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        assert "`excluded`" in (await refusal(client, item_ids=[1], excluded_item_ids=[2]))["excluded_item_ids"]
        assert "`excluded`" in (await refusal(client, item_ids=[1], exclude_history=True))["exclude_history"]
        assert "`candidates`" in (await refusal(client, item_ids=[1], candidate_item_ids=[2]))["candidate_item_ids"]
    async with (
        serve(model=older, num_recommendations=5) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        assert "no scores" in (await refusal(client, item_ids=[1], min_score=0.5))["min_score"]


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("max_excluded", {"item_ids": [1], "excluded_item_ids": [1, 2, 3]}),
        ("max_candidates", {"item_ids": [1], "candidate_item_ids": [1, 2, 3]}),
        ("max_history", {"item_ids": [1, 2, 3]}),
    ],
)
async def test_lists_over_their_configured_limit_are_refused(
    serve: Serve, setting: str, options: dict[str, list[int]]
) -> None:
    async with serve(**{setting: 2}) as server, Client(f"127.0.0.1:{server.port}") as client:
        (description,) = (await refusal(client, **options)).values()

    assert description.startswith("3 items are more than the 2 that it may have")


@pytest.mark.parametrize("name", ["", "reference", "reference@1"])
async def test_a_model_can_be_named_and_describes_itself(client: Client, name: str) -> None:
    model = await client.get_model(name, timeout=TIMEOUT)
    answer = await client.recommend([0], model=name, timeout=TIMEOUT)

    assert list(answer.item_ids) == FACTS[0,]
    assert (model.name, model.version, model.items, model.embedding_size) == ("reference", "1", 10_000, 32)
    assert (model.default_limit, model.max_limit, model.longest_history) == (10, 1000, 0)
    assert (model.vocabulary_size, model.fallback_size) == (0, 0)
    assert model.sha256 == open_artifact(WEIGHTS / "10_model.onnx").sha256
    assert model.execution_provider == "CPUExecutionProvider"
    assert model.HasField("loaded_at")
    assert await client.list_models(timeout=TIMEOUT) == [model]


async def test_a_model_with_keys_and_a_fallback_list_says_how_many(keyed: Client) -> None:
    model = await keyed.get_model(timeout=TIMEOUT)

    assert (model.vocabulary_size, model.fallback_size) == (ITEMS, len(FALLBACK))


@pytest.mark.parametrize("name", ["other", "reference@2", "@1", "reference@"])
async def test_a_model_that_is_not_served_is_not_found(client: Client, name: str) -> None:
    for call in (
        client.get_model(name, timeout=TIMEOUT),
        client.recommend([0], model=name, timeout=TIMEOUT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert refused.value.details() == f"no model {name!r} is served; reference@1 is"


async def test_one_request_of_many_may_name_a_model_that_is_not_served(client: Client) -> None:
    requests = [Request(item_ids=[0], model="other"), Request(item_ids=[0])]
    lost, found = await client.recommend_many(requests, timeout=TIMEOUT)

    assert isinstance(lost, Refusal)
    assert lost.code == grpc.StatusCode.NOT_FOUND
    assert not isinstance(found, Refusal)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("my-call_1", True), ("x" * 128, True), ("x" * 129, False), ("", False), (None, False)],
)
async def test_a_call_has_an_id_in_its_reply_and_its_metadata(server: AnyServer, sent: str | None, kept: bool) -> None:  # noqa: FBT001
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        recommend: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/recommend_api.v1.RecommenderService/Recommend"
        )
        metadata = () if sent is None else (("x-request-id", sent),)
        call = recommend(Request(item_ids=[0]).SerializeToString(), metadata=metadata, timeout=TIMEOUT)
        reply = api.RecommendResponse.FromString(await call)
        trailing = dict(await call.trailing_metadata())

    assert trailing["x-request-id"] == reply.request_id
    assert (reply.request_id == sent) is kept
    assert 0 < len(reply.request_id) <= 128


def test_the_synchronous_client_does_the_same(catalogue: Path, edge: Edge) -> None:
    with served(catalogue, 10, edge) as port, SyncClient(f"127.0.0.1:{port}") as client:
        answer = client.recommend([1, 2], limit=4, exclude_history=True, timeout=TIMEOUT)
        one, lost = client.recommend_many(
            [Request(item_ids=[1, 2], limit=4, exclude_history=True), Request(limit=-1)], timeout=TIMEOUT
        )
        model = client.get_model(timeout=TIMEOUT)
        with pytest.raises(grpc.RpcError):
            client.recommend([-1], timeout=TIMEOUT)

    assert one == answer
    assert len(answer.item_ids) == 4
    assert isinstance(lost, Refusal)
    assert model.vocabulary_size == ITEMS
