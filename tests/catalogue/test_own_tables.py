"""Tables of items that versions bring along: by id or by key, checked with the version, and replaced with it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
import structlog
import typer

from recommender.cli.clients.tables import check
from recommender.client import Client
from recommender.errors import ModelError
from recommender.export import ExportError, ExportOptions, export_model
from recommender.models.card import CARD_NAME, CardFile, file_sha256
from tests.support.catalogues import add_vocabulary
from tests.support.following import TIMEOUT, until
from tests.support.serving import ServeHere

ITEMS = 40
CHEAP = "item.price < 5"


def by_id(*cheap: int) -> str:
    """A table of all items but the last, of which these cost 1 and the others 9."""
    return "id,price\n" + "".join(f"{item},{1 if item in cheap else 9}\n" for item in reversed(range(ITEMS - 1)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version without keys, whose table by id gives the items 3 and 30 a low price."""
    folder = tmp_path_factory.mktemp("exported")
    table = folder / "given.csv"
    table.write_text(by_id(3, 30), encoding="utf-8")
    options = ExportOptions(items=ITEMS, dim=4, output=folder / "1" / "model.onnx", items_table=table, name="shop")
    return export_model(options).parent


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    """The folder of a model `shop` with that version."""
    shutil.copytree(exported, tmp_path / "shop" / "1")
    return tmp_path / "shop"


def bring(version: Path, table: str) -> None:
    """Put another table into a version, and into its card."""
    path = version / "model.items.csv"
    path.write_text(table, encoding="utf-8")
    card = json.loads((version / CARD_NAME).read_text(encoding="utf-8"))
    file = CardFile(path=path.name, role="items_table", size=path.stat().st_size, sha256=file_sha256(path))
    card["files"] = [each for each in card["files"] if each["role"] != "items_table"] + [file.model_dump()]
    (version / CARD_NAME).write_text(json.dumps(card), encoding="utf-8")


async def cheap(client: Client) -> tuple[str, Sequence[int]]:
    """The version that answers, and the items that it takes for cheap."""
    answer = await client.recommend([1], filter=CHEAP, timeout=TIMEOUT)
    return answer.model_version, sorted(answer.item_ids)


async def test_a_version_is_filtered_by_the_table_that_it_brings(models: Path, serve: ServeHere) -> None:
    async with (
        serve(model=models, num_recommendations=5, model_poll_ms=20) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        assert await cheap(client) == ("shop@1", [3, 30])
        unknown = await client.recommend([1], filter="!has(item.price)", timeout=TIMEOUT)
        assert unknown.item_ids == (ITEMS - 1,)

        shutil.copytree(models / "1", models.parent / "2")
        bring(models.parent / "2", by_id(0, 7, 8))
        (models.parent / "2").rename(models / "2")
        await until(server, lambda seen: seen.serving == "shop@2")
        assert await cheap(client) == ("shop@2", [0, 7, 8])

        shutil.copytree(models / "1", models.parent / "3")
        bring(models.parent / "3", by_id(0) + f"{ITEMS},1\n")
        (models.parent / "3").rename(models / "3")
        await until(server, lambda seen: f"it has the id {ITEMS}" in (seen.refusal or ""))
        assert await cheap(client) == ("shop@2", [0, 7, 8])


async def test_the_table_of_the_settings_wins_and_the_log_says_so(models: Path, serve: ServeHere) -> None:
    add_vocabulary(models / "1" / "model.onnx", [f"item {item}" for item in range(ITEMS)])
    setting = models.parent / "items.csv"
    setting.write_text("key,price\nitem 5,1\nitem 6,9\n", encoding="utf-8")
    with structlog.testing.capture_logs() as logged:
        async with (
            serve(model=models, num_recommendations=5, items=setting) as server,
            Client(f"127.0.0.1:{server.port}") as client,
        ):
            assert await cheap(client) == ("shop@1", [5])
    told = [line for line in logged if "RECOMMENDER_ITEMS names another" in line["event"]]
    assert [(line["model"], Path(line["path"]).name) for line in told] == [("shop@1", "model.items.csv")]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (by_id(0) + f"{ITEMS},1\n", f"it has the id {ITEMS}, and the model's ids are 0 to {ITEMS - 1}"),
        (by_id(0) + "0,1\n", "the id 0 occurs twice"),
        ("id,price\n-1,2\n", "row 1 has no id from 0 on"),
        ("id,price\n1.5,2\n", "ids are whole numbers"),
        ("key,price\na,1\n", "the model has no keys: give its items by 'id'"),
        ("name,price\na,1\n", "must be 'key' or 'id'"),
    ],
)
async def test_a_version_with_a_bad_table_is_refused(models: Path, serve: ServeHere, table: str, sentence: str) -> None:
    bring(models / "1", table)
    with pytest.raises(ModelError, match=sentence):
        async with serve(model=models, num_recommendations=5):
            pass


async def test_without_the_libraries_the_version_serves_and_filters_are_refused(
    models: Path, serve: ServeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "recommender.catalogue.attributes.own", None)
    async with (
        serve(model=models, num_recommendations=5) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        assert (await client.recommend([1], timeout=TIMEOUT)).item_ids
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cheap(client)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the extra recommender[catalogue]" in (refused.value.details() or "")


def test_a_table_that_is_not_the_networks_is_refused_at_the_export(tmp_path: Path) -> None:
    table = tmp_path / "items.csv"
    table.write_text(by_id(0), encoding="utf-8")
    with pytest.raises(ExportError, match=f"it has the id {ITEMS - 2}"):
        export_model(ExportOptions(items=20, dim=4, output=tmp_path / "10_model.onnx", items_table=table))


def test_the_command_takes_a_table_by_id_for_a_card_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "items.csv"
    table.write_text(by_id(0), encoding="utf-8")
    check(table, for_card=True)
    assert f"{table}: {ITEMS - 1} items" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        check(table)
    assert "list it in the card" in capsys.readouterr().err
