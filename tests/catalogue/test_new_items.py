"""New items over the wire: ranked with the catalogue by the next second, as a model that has them would rank them."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from recommender.client import Client, NewItem
from recommender.domain import Query
from recommender.recommend_api.open_inference import open_inference_pb2 as oip
from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.adding import TIMEOUT, exported_shop, new_item, shopping
from tests.support.asking import typed
from tests.support.catalogues import every_batch_from_8_bits, export_catalogue, reference_embeddings
from tests.support.engines import engines
from tests.support.serving import AnyServer, Shared

pytestmark = pytest.mark.both_edges
ITEMS, NEW = 300, 40
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_shop(tmp_path_factory.mktemp("model"), ITEMS)


@pytest.fixture(scope="module")
def server(model: Path, shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> AnyServer:
    return shared(
        model=model,
        num_recommendations=10,
        catalogue_writes=True,
        catalogue_journal=tmp_path_factory.mktemp("kept") / "journal.sqlite",
        max_new_items=60,
    )


async def test_answers_are_those_of_a_freshly_exported_model(server: AnyServer, tmp_path: Path) -> None:
    rows = reference_embeddings(ITEMS + NEW)
    assert (rows[:ITEMS] == reference_embeddings(ITEMS)).all()
    async with shopping(server.port, ITEMS) as shop:
        await shop.add(*(new_item(f"item {ITEMS + place}", rows[ITEMS + place]) for place in range(NEW)))
        with engines() as load:
            fresh = load(export_catalogue(tmp_path, ITEMS + NEW))
            for history in ([3], [1, 2, 299], [7] * 20):
                (wanted,) = fresh.rank([Query(tuple(history), 60)])
                got = await shop.ask(item_ids=history, limit=60)
                assert any(item >= ITEMS for item in wanted.item_ids)
                assert list(got.item_keys) == [f"item {item}" for item in wanted.item_ids]
                assert np.allclose(got.scores, wanted.scores, atol=fresh.model.score_tolerance)
        await shop.remove(*(f"item {ITEMS + place}" for place in range(NEW)))


async def test_new_items_obey_exclusions_candidates_and_hiding_and_are_named_by_keys(server: AnyServer) -> None:
    async with shopping(server.port, ITEMS) as shop:
        first = await shop.add(new_item("best", [9.0] * 8), new_item("next", [8.0] * 8, bias=1.0))
        again = await shop.add(new_item("next", [7.0] * 8), new_item("worst", [-9.0] * 8, bias=-1.0))
        plain = await shop.ask(item_ids=[3], limit=3)
        ids = dict(zip(plain.item_keys, plain.item_ids, strict=True))
        excluded = await shop.ask(item_ids=[3], limit=1, excluded_item_keys=["best"])
        excluded_by_id = await shop.ask(item_ids=[3], limit=1, excluded_item_ids=[ids["best"]])
        candidates = await shop.ask(item_ids=[3], candidate_item_keys=["worst", "item 5", "nobody's", "next"])
        seen = await shop.ask(item_keys=["item 3", "best"], exclude_history=True, limit=1)
        only_new = await shop.ask(item_keys=["item 3"], candidate_item_keys=["worst"])
        everything = await shop.ask(item_ids=[3], limit=300)
        await shop.catalogue.HideItems(capi.HideItemsRequest(item_keys=["best", "gone"]), timeout=TIMEOUT)
        while (hidden := await shop.ask(item_ids=[3], limit=1)).item_keys != ["next"]:
            pass
        shown = await shop.catalogue.ShowItems(capi.ShowItemsRequest(item_keys=["best", "gone"]), timeout=TIMEOUT)
        states = await shop.states()
        await shop.remove("best", "next", "worst")
        assert not await shop.states()

    assert (first.added, first.replaced, first.total, first.waiting) == (2, 0, 2, False)
    assert (again.added, again.replaced, again.total) == (1, 1, 3)
    assert list(plain.item_keys)[:2] == ["best", "next"]
    assert min(ids["best"], ids["next"]) >= ITEMS
    assert list(excluded.item_keys) == list(excluded_by_id.item_keys) == ["next"]
    assert list(candidates.item_keys) == ["next", "item 5", "worst"]
    assert list(candidates.unknown_item_keys) == ["nobody's"]
    assert list(seen.item_keys) == ["next"]
    assert list(seen.unknown_item_keys) == ["best"]
    assert list(only_new.item_keys) == ["worst"]
    assert len(everything.item_keys) == 300
    assert shown.changed == 2
    assert hidden.item_ids[0] == ids["next"]
    assert states == {"best": "RANKED", "next": "RANKED", "worst": "RANKED"}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (capi.UpsertItemsRequest(), "model"),
        (capi.UpsertItemsRequest(model="reference@1"), "items"),
        (capi.UpsertItemsRequest(model="reference", items=[new_item("a", [1.0] * 8)]), "names no version"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0] * 7)]), "items[0].vector: it has 7"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [])]), "items[0].vector"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("", [1.0] * 8)]), "items[0].key"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [np.nan] * 8)]), "NaN or infinity"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0] * 8, np.inf)]), "items[0].bias"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0] * 8)] * 2), "'a' occurs twice"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("item 7", [1.0] * 8)]), "is in the catalogue"),
        (
            capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0] * 8, 0.0, {"x": [1, 2]})]),
            "an attribute is a bool",
        ),
        (
            capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0] * 8, 0.0, {"x": "y" * 1000})] * 5),
            "occurs twice",
        ),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0])] * 1001), "items"),
        (capi.UpsertItemsRequest(model="reference@1", items=[new_item("a", [1.0])] * 4000), "may have 3000 fields"),
        (capi.RemoveItemsRequest(), "item_keys"),
        (capi.RemoveItemsRequest(item_keys=["a"], model="reference"), "names no version"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(
    server: AnyServer, request_: capi.UpsertItemsRequest | capi.RemoveItemsRequest, sentence: str
) -> None:
    async with shopping(server.port, ITEMS) as shop:
        if isinstance(request_, capi.UpsertItemsRequest):
            call: Awaitable[object] = shop.catalogue.UpsertItems(request_, timeout=TIMEOUT)
        else:
            call = shop.catalogue.RemoveItems(request_, timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in (refused.value.details() or "")


async def test_more_than_may_be_are_refused_as_a_whole(server: AnyServer) -> None:
    async with shopping(server.port, ITEMS) as shop:
        await shop.add(*(new_item(f"new {place}", [0.5] * 8) for place in range(60)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await shop.add(new_item("new 7", [0.1] * 8), new_item("another", [0.5] * 8))
        replaced = await shop.add(new_item("new 7", [0.2] * 8))
        listed = await shop.catalogue.ListNewItems(capi.ListNewItemsRequest(page_size=50), timeout=TIMEOUT)
        following = capi.ListNewItemsRequest()
        following.page_token = listed.next_page_token
        rest = await shop.catalogue.ListNewItems(following, timeout=TIMEOUT)
        await shop.remove(*(f"new {place}" for place in range(60)))

    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "60 new items may be kept, and these would make it 61" in (refused.value.details() or "")
    assert (replaced.replaced, replaced.total) == (1, 60)
    assert [len(listed.items), len(rest.items), listed.total, listed.limit] == [50, 10, 60, 60]
    assert [(each.state, each.items) for each in listed.counts] == [(capi.NEW_ITEM_STATE_RANKED, 60)]
    assert (rest.next_page_token, rest.total, len(rest.counts)) == ("", 60, 0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_answer_is_that_of_brute_force(server: AnyServer, seed: int) -> None:
    await compare_with_brute_force(server.port, ITEMS, ITEMS, seed)


@pytest.mark.slow
async def test_every_answer_of_a_table_in_8_bits_is_that_of_brute_force(
    shared: Shared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    items, folder = 20_000, tmp_path_factory.mktemp("coarse")
    with every_batch_from_8_bits():
        coarse = shared(
            model=exported_shop(folder, items, coarse=True),
            num_recommendations=10,
            catalogue_writes=True,
            catalogue_journal=folder / "journal.sqlite",
        )
    await compare_with_brute_force(coarse.port, items, 12, seed=1)


async def compare_with_brute_force(port: int, items: int, most: int, seed: int) -> None:
    """Random new items, some hidden, under random histories, exclusions, candidates and limits up to `most`.

    With `most` = `items` some limits are above what is left.
    """
    random = np.random.default_rng(seed)
    new = [f"new {place}" for place in range(30)]
    async with shopping(port, items) as shop:
        await shop.add(*(new_item(key, random.random(8).tolist(), float(random.normal())) for key in new))
        hidden = set(random.choice([*new, *(f"item {item}" for item in range(items))], 80).tolist())
        await shop.catalogue.HideItems(capi.HideItemsRequest(item_keys=hidden), timeout=TIMEOUT)
        while (await shop.ask(item_ids=[0], candidate_item_keys=hidden)).item_keys:
            pass
        keys = list(shop.vectors)
        asked: list[api.RecommendRequest] = []
        for _ in range(60):
            named = random.choice(keys, random.integers(1, 40)).tolist()
            request = api.RecommendRequest(limit=int(random.integers(1, most + 1)))
            request.item_keys[:] = [f"item {item}" for item in random.integers(0, items, random.integers(1, 6))]
            request.exclude_history = bool(random.integers(2))
            if random.random() < 0.4:
                request.candidate_item_keys[:] = named
            if random.random() < 0.4:
                request.excluded_item_keys[:] = random.choice(keys, random.integers(1, 40)).tolist()
            asked.append(request)
        reply = await shop.service.BatchRecommend(api.BatchRecommendRequest(requests=asked), timeout=TIMEOUT)
        for request, result in zip(asked, reply.results, strict=True):
            scores = shop.scores(request.item_keys)
            allowed = set(request.candidate_item_keys or keys) - hidden - set(request.excluded_item_keys)
            if request.exclude_history:
                allowed -= set(request.item_keys)
            wanted = sorted(allowed, key=lambda key: -scores[key])[: request.limit]
            got = result.response
            assert len(set(got.item_keys)) == len(got.item_keys) == len(wanted)
            assert set(got.item_keys) <= allowed
            assert np.allclose(got.scores, [scores[key] for key in wanted], atol=1e-4)
            assert np.allclose(got.scores, [scores[key] for key in got.item_keys], atol=1e-4)
        await shop.catalogue.ShowItems(capi.ShowItemsRequest(item_keys=hidden), timeout=TIMEOUT)
        await shop.remove(*new)


async def test_commands_and_clients_add_list_and_remove_items(server: AnyServer, tmp_path: Path) -> None:
    lines = tmp_path / "new.jsonl"
    rows = [{"key": "lamp", "vector": [9.0] * 8, "price": 3}, {"key": "desk", "vector": [8.0] * 8, "bias": -1.5}]
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    table = tmp_path / "new.parquet"
    pa.parquet.write_table(pa.table({"key": ["desk", "sofa"], "vector": [[7.0] * 8, [6.0] * 8]}), table)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text('{"key": "a", "vector": [1, "x"]}\n', encoding="utf-8")
    at = ("--host", "127.0.0.1", "--port", str(server.port))

    first = await typed("items", "upsert", str(lines), "--model", "reference@1", *at)
    second = await typed("items", "upsert", str(table), "--model", "reference@1", *at)
    waiting = await typed("items", "upsert", str(table), "--model", "reference@9", *at)
    wrong = await typed("items", "upsert", str(damaged), "--model", "reference@1", *at)
    listed = await typed("items", "new", *at)
    removed = await typed("items", "remove", "lamp", "sofa", *at)
    async with Client(f"127.0.0.1:{server.port}") as client:
        added = await client.upsert_items(
            "reference@1", [NewItem("rug", [1.0] * 8, 0.5, {"soft": True})], timeout=TIMEOUT
        )
        left = await client.remove_items(["rug", "desk", "none"], timeout=TIMEOUT)

    assert first.stdout.splitlines()[-1] == "2 added, 0 replaced; there are 2 new items now"
    assert second.stdout.splitlines()[-1] == "1 added, 1 replaced; there are 3 new items now"
    assert waiting.stderr == "reference@9 is not served: its items wait\n"
    assert wrong.exit_code == 2
    assert "row 1, 'a', has no `vector`" in wrong.stderr
    assert [line for line in listed.stdout.splitlines() if "\t" in line] == [
        *(f"ranked\treference@1\t{key}" for key in ("desk", "lamp", "sofa")),
        *(f"waiting\treference@9\t{key}" for key in ("desk", "sofa")),
    ]
    assert listed.stderr == "5 new items, 60 at most: 3 ranked, 2 waiting\n"
    assert removed.stdout.splitlines()[-1] == "3 removed; there are 2 new items now"
    assert (added, left) == (1, 3)


async def test_the_open_inference_protocol_has_them_too(server: AnyServer) -> None:
    tensor = oip.ModelInferRequest.InferInputTensor(name="user_history", datatype="INT64", shape=[1, 1])
    request = oip.ModelInferRequest(
        model_name="reference",
        inputs=[tensor],
        raw_input_contents=[np.array([3], np.int64).tobytes()],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("item_keys", "scores")],
    )
    async with shopping(server.port, ITEMS) as shop, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await shop.add(new_item("best", [9.0] * 8), new_item("last", [-9.0] * 8))
        infer: grpc.aio.UnaryUnaryMultiCallable[oip.ModelInferRequest, oip.ModelInferResponse] = channel.unary_unary(
            INFER,
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        reply = await infer(request, timeout=TIMEOUT)
        wanted = await shop.ask(item_ids=[3])
        await shop.remove("best", "last")
    keys, at, raw = [], 0, reply.raw_output_contents[0]
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        keys.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    assert keys == list(wanted.item_keys)
    assert keys[0] == "best"
    assert np.frombuffer(reply.raw_output_contents[1], np.float32).tolist() == list(wanted.scores)
