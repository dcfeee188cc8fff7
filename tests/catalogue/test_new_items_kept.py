"""New items while versions change, workers share them, and servers are killed; and what filters select of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from recommender.models.card import CARD_NAME, CardFile, card_path, file_sha256
from recommender.models.vocabulary import write_vocabulary
from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.adding import TIMEOUT, Shop, exported_shop, new_item, shopping
from tests.support.process import running
from tests.support.serving import ServeHere

ITEMS = 60
LABEL = "reference@1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_shop(tmp_path_factory.mktemp("model"), ITEMS)


def publish(source: Path, folder: Path, version: str, *, space: str | None = None, keys: Sequence[str] = ()) -> None:
    """Put a version into a folder of versions: the same model by another name, and perhaps with other keys."""
    draft = folder / f".{version}"
    draft.mkdir(parents=True)
    card = json.loads(card_path(source).read_text(encoding="utf-8")) | {"version": version, "embedding_space": space}
    shutil.copy(source, draft / "model.onnx")
    named = draft / "model.keys"
    write_vocabulary([*keys, *(f"item {item}" for item in range(len(keys), ITEMS))], named)
    vocabulary = CardFile(
        path=named.name, role="vocabulary", size=named.stat().st_size, sha256=file_sha256(named)
    ).model_dump()
    (file,) = (each for each in card["files"] if each["role"] == "model")
    card["files"] = [file | {"path": "model.onnx"}, vocabulary]
    (draft / CARD_NAME).write_text(json.dumps(card), encoding="utf-8")
    draft.rename(folder / version)


async def serves(shop: Shop, version: str) -> None:
    async with asyncio.timeout(TIMEOUT):
        while (await shop.ask(item_ids=[1])).model_version != f"reference@{version}":
            pass


async def best(shop: Shop, wanted: str) -> None:
    """Wait until this is the best item of all."""
    async with asyncio.timeout(TIMEOUT):
        while (await shop.ask(item_ids=[1], limit=1)).item_keys != [wanted]:
            pass


async def upsert(shop: Shop, model: str, *items: capi.NewItem) -> capi.UpsertItemsResponse:
    return await shop.catalogue.UpsertItems(capi.UpsertItemsRequest(model=model, items=items), timeout=TIMEOUT)


async def test_vectors_go_over_to_versions_of_their_space_only(model: Path, tmp_path: Path, serve: ServeHere) -> None:
    folder = tmp_path / "reference"
    publish(model, folder, "1", space="tower-a")
    async with (
        serve(
            model=folder,
            model_poll_ms=20,
            catalogue_writes=True,
            catalogue_journal=tmp_path / "journal.sqlite",
            max_new_items=4,
        ) as server,
        shopping(server.port, ITEMS) as shop,
    ):
        await upsert(shop, LABEL, new_item("lamp", [9.0] * 8), new_item("desk", [8.0] * 8))
        waiting = await upsert(shop, "reference@2", new_item("sofa", [7.0] * 8), new_item("lamp", [6.5] * 8))
        first = await shop.states()

        publish(model, folder, "2", space="tower-a", keys=["desk"])  # it has learned of the desk
        await serves(shop, "2")
        carried = await shop.ask(item_ids=[1], limit=3)
        await shop.come_to({"lamp": "RANKED", "desk": "IN_CATALOGUE", "sofa": "RANKED"})

        publish(model, folder, "3")
        await serves(shop, "3")
        third = await shop.ask(item_ids=[1], limit=60)
        await shop.come_to({"lamp": "LEFT_BEHIND", "desk": "LEFT_BEHIND", "sofa": "LEFT_BEHIND"})
        room = await upsert(shop, "reference@3", new_item("rug", [5.0] * 8), new_item("bed", [5.5] * 8))
        await best(shop, "bed")
        last = await shop.states()
        removed = await shop.catalogue.RemoveItems(capi.RemoveItemsRequest(left_behind=True), timeout=TIMEOUT)
        rest = await shop.states()

    assert waiting.waiting
    assert first == {"lamp": "WAITING", "desk": "RANKED", "sofa": "WAITING"}  # the lamp of version 2 is listed last
    assert list(carried.item_keys)[:2] == ["sofa", "lamp"]  # the lamp by its own version's vector
    assert carried.item_keys[2] not in ("lamp", "desk")
    assert not {"lamp", "sofa"} & set(third.item_keys)
    assert (room.added, room.dropped, room.total) == (2, 2, 4)
    assert last.keys() == {"lamp", "sofa", "rug", "bed"}
    assert (removed.removed, rest) == (2, {"rug": "RANKED", "bed": "RANKED"})


async def test_workers_share_them_and_know_them_by_the_same_ids(model: Path, tmp_path: Path, serve: ServeHere) -> None:
    together = {"model": model, "catalogue_writes": True, "catalogue_journal": tmp_path / "journal.sqlite"}
    async with (
        serve(**together) as one,
        serve(**together) as other,
        shopping(one.port, ITEMS) as first,
        shopping(other.port, ITEMS) as second,
    ):
        await upsert(first, LABEL, new_item("lamp", [9.0] * 8))
        await upsert(second, LABEL, new_item("desk", [8.0] * 8))
        await best(first, "lamp")
        await best(second, "lamp")
        await first.remove("lamp")
        await best(second, "desk")
        answers = [await shop.ask(item_ids=[1], limit=1) for shop in (first, second)]
    assert [list(answer.item_ids) for answer in answers] == [[ITEMS + 1], [ITEMS + 1]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"query_vector": False}, "exported by an older version"), ({"embedding_size": 0}, "no item table")],
)
async def test_a_model_that_cannot_rank_them_refuses_them(
    model: Path, tmp_path: Path, serve: ServeHere, changes: dict[str, object], sentence: str
) -> None:
    import onnx  # noqa: PLC0415 (slow)

    folder = tmp_path / "reference"
    publish(model, folder, "1")
    card = json.loads((folder / "1" / CARD_NAME).read_text(encoding="utf-8")) | changes
    if "query_vector" in changes:
        file = folder / "1" / "model.onnx"
        older = onnx.load(file)
        older.graph.output.remove(next(output for output in older.graph.output if output.name == "query"))
        onnx.save(older, file)
        card["files"][0] |= {"sha256": file_sha256(file), "size": file.stat().st_size}
    (folder / "1" / CARD_NAME).write_text(json.dumps(card), encoding="utf-8")
    async with (
        serve(model=folder, catalogue_writes=True, catalogue_journal=tmp_path / "journal.sqlite") as server,
        shopping(server.port, ITEMS) as shop,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await upsert(shop, LABEL, new_item("lamp", [9.0] * 8))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in (refused.value.details() or "")


async def test_filters_select_new_items_by_their_attributes(model: Path, tmp_path: Path, serve: ServeHere) -> None:
    table = tmp_path / "items.jsonl"
    rows = [{"key": f"item {item}", "price": item / 2, "tags": ["old"], "since": None} for item in range(10)]
    rows[0]["since"] = "2020-01-01T00:00:00Z"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    async with (
        serve(model=model, catalogue_writes=True, catalogue_journal=tmp_path / "journal.sqlite", items=table) as server,
        shopping(server.port, ITEMS) as shop,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await upsert(
                shop,
                LABEL,
                new_item("lamp", [9.0] * 8, 0.0, {"prize": 3.0}),
                new_item("desk", [9.0] * 8, 0.0, {"tags": "new"}),
            )
        await shop.add(
            new_item("lamp", [9.0] * 8, 0.0, {"price": 2, "tags": ["new"]}),
            new_item("desk", [8.0] * 8, 0.0, {"price": 9.5, "since": "2026-01-01T00:00:00+01:00"}),
            new_item("sofa", [7.0] * 8),
        )
        cheap = await shop.ask(item_ids=[1], filter="item.price < 2.5", limit=60)
        fresh = await shop.ask(item_ids=[1], filter="'new' in item.tags", limit=60)
        unpriced = await shop.ask(item_ids=[1], filter="!has(item.price) && !has(item.tags)", limit=3)
        late = await shop.ask(item_ids=[1], filter='item.since > timestamp("2025-12-31T22:59:59Z")', limit=60)
        none = await shop.ask(item_ids=[1], filter="item.price > 100.0")
        among = await shop.ask(item_ids=[1], filter="item.price > 4.0", candidate_item_keys=["lamp", "desk", "item 9"])
    said = refused.value.details() or ""
    assert "items[0].attributes[prize]: the table of items has no attribute 'prize': did you mean 'price'?" in said
    assert "items[1].attributes[tags]: 'new' is no list of strings" in said
    assert (cheap.item_keys[0], len(cheap.item_keys), cheap.matching_items) == ("lamp", 6, 6)
    assert (list(fresh.item_keys), fresh.matching_items) == (["lamp"], 1)
    assert (unpriced.item_keys[0], unpriced.matching_items) == ("sofa", 51)
    assert list(late.item_keys) == ["desk"]
    assert (list(none.item_keys), none.matching_items) == ([], 0)
    assert list(among.item_keys) == ["desk", "item 9"]


async def test_attributes_stay_when_a_version_has_learned_of_the_item(
    model: Path, tmp_path: Path, serve: ServeHere
) -> None:
    table = tmp_path / "items.jsonl"
    rows = [{"key": f"item {item}", "price": 50, "brand": "acme"} for item in range(5)]
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "reference"
    publish(model, folder, "1")
    async with (
        serve(
            model=folder,
            model_poll_ms=20,
            items=table,
            catalogue_writes=True,
            catalogue_journal=tmp_path / "journal.sqlite",
        ) as server,
        shopping(server.port, ITEMS) as shop,
    ):
        await upsert(
            shop,
            LABEL,
            new_item("lamp", [1.0] * 8, 0.0, {"price": 3, "brand": "acme"}),
            new_item("item 1b", [1.0] * 8, 0.0, {"price": 4, "brand": "bolt"}),
            new_item("desk", [9.0] * 8, 0.0, {"price": 5}),
        )
        await best(shop, "desk")
        publish(model, folder, "2", keys=["lamp", "item 1", "item 1b"])  # the table lacks two of these
        await serves(shop, "2")
        await shop.come_to({"lamp": "LEFT_BEHIND", "item 1b": "LEFT_BEHIND", "desk": "LEFT_BEHIND"})
        cheap = await shop.ask(item_ids=[1], filter="item.price < 10", limit=60)
        bound = api.MaxPer(attribute="brand", n=1)
        branded = await shop.ask(item_ids=[1], filter="has(item.brand)", max_per=[bound], limit=60)
        await shop.catalogue.RemoveItems(capi.RemoveItemsRequest(item_keys=["lamp"]), timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            while list((await shop.ask(item_ids=[1], filter="item.price < 10", limit=60)).item_keys) != ["item 1b"]:
                pass
    assert ({*cheap.item_keys}, cheap.matching_items) == ({"lamp", "item 1b"}, 2)
    assert len(branded.item_keys) == 2
    assert "item 1b" in branded.item_keys


@pytest.mark.slow
async def test_what_was_acknowledged_outlives_a_kill(model: Path, tmp_path: Path) -> None:
    server = {
        "RECOMMENDER_MODEL": str(model),
        "RECOMMENDER_CATALOGUE_WRITES": "true",
        "RECOMMENDER_CATALOGUE_JOURNAL": str(tmp_path / "journal.sqlite"),
    }
    acknowledged: list[str] = []
    async with running(settings=server) as first, shopping(first.port, ITEMS) as shop:

        async def add_one_after_another() -> None:
            for number in range(500):
                await upsert(shop, LABEL, new_item(f"new {number}", [float(number)] * 8))
                acknowledged.append(f"new {number}")
                if number == 20:
                    first.signal(signal.SIGKILL)

        with pytest.raises(grpc.aio.AioRpcError):
            await add_one_after_another()
        await first.exit_code()
    async with running(settings=server) as second, shopping(second.port, ITEMS) as shop:
        answer = await shop.ask(item_ids=[1], limit=len(acknowledged), candidate_item_keys=acknowledged)
    assert len(acknowledged) > 20
    assert list(answer.item_keys) == acknowledged[::-1]
