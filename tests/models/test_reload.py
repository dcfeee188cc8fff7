"""Versions come and go while requests are answered: from a folder that is watched, through a real proof."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import grpc
import pytest

from recommender.client import Client
from recommender.errors import ModelError
from recommender.models.card import CARD_NAME, MODEL_NAME
from recommender.models.sources.folder import FolderSource
from recommender.settings.engine import Device
from tests.support.following import FOLLOWING, PATIENCE, TIMEOUT, answer, load, until
from tests.support.models import write_older_model
from tests.support.serving import ServeHere
from tests.support.versions import alter, answer_of, embeddings_of, write_version


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of a model `shop` with one version."""
    write_version(tmp_path / "shop" / "1", 1)
    return tmp_path / "shop"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
async def test_a_new_version_serves_and_no_request_notices(models: Path, serve: ServeHere, device: Device) -> None:
    async with serve(model=models, device=device, **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        async with load(client) as answers:
            for version in (2, 3):
                write_version(models / str(version), version)
                await until(server, lambda seen, label=f"shop@{version}": seen.serving == label)  # type: ignore[misc]
            await answer(client)

        expected = {f"shop@{version}": answer_of(version) for version in (1, 2, 3)}
        assert {(got.model_version, got.item_ids) for got in answers} == set(expected.items())
        assert answers[-1].model_version == "shop@3"
        assert server.statistics().answered == len(answers) + 1
        assert [model.version for model in await client.list_models(timeout=TIMEOUT)] == ["3"]


async def test_removing_the_largest_version_rolls_back(models: Path, serve: ServeHere) -> None:
    write_version(models / "2", 2)
    async with serve(model=models, **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client) == ("shop@2", answer_of(2))
        shutil.rmtree(models / "2")
        await until(server, lambda seen: seen.serving == "shop@1")

        assert await answer(client) == ("shop@1", answer_of(1))


async def test_versions_are_compared_by_number(models: Path, serve: ServeHere) -> None:
    for version in (2, 9, 10):
        write_version(models / str(version), version)
    async with serve(model=models, **FOLLOWING) as server:
        assert server.model.label == "shop@10"


async def test_a_pinned_version_stays(models: Path, serve: ServeHere) -> None:
    write_version(models / "2", 2)
    async with serve(model=f"{models}@1", **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client, model="shop@1") == ("shop@1", answer_of(1))


async def test_several_models_answer_by_name(models: Path, tmp_path: Path, serve: ServeHere) -> None:
    write_version(tmp_path / "news" / "7", 7)
    both = f"{models},{tmp_path / 'news'}"
    async with serve(model=both, **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client) == ("shop@1", answer_of(1))
        assert await answer(client, model="news") == ("news@7", answer_of(7))
        assert await answer(client, model="news@7") == ("news@7", answer_of(7))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await answer(client, model="news@6")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert "shop@1, news@7 are" in (refused.value.details() or "")


def cut(folder: Path) -> None:
    path = folder / MODEL_NAME
    path.write_bytes(path.read_bytes()[:-100])


def of_the_older_form_with_too_few(folder: Path) -> None:
    """Another contract: it gives three recommendations, and callers are promised five."""
    write_older_model(folder / MODEL_NAME, embeddings_of(2), 3)
    _list_again(folder, default_k=3, max_k=3, golden=[])


def with_a_misfit_input(folder: Path) -> None:
    import onnx  # noqa: PLC0415

    model = onnx.load(folder / MODEL_NAME)
    model.graph.input.append(onnx.helper.make_tensor_value_info("context", onnx.TensorProto.FLOAT, ["n"]))
    onnx.save(model, folder / MODEL_NAME)
    _list_again(folder)


def with_numbers_out_of_range(folder: Path) -> None:
    keys = (folder / MODEL_NAME).with_suffix(".keys")
    content = bytearray(keys.read_bytes())
    content[-28:-24] = b"\xff\xff\xff\x7f"  # the last number before the footer
    keys.write_bytes(content)
    _list_again(folder)


def _list_again(folder: Path, **changes: object) -> None:
    from recommender.models.card import file_sha256  # noqa: PLC0415

    card = json.loads((folder / CARD_NAME).read_text())
    for file in card["files"]:
        path = folder / file["path"]
        file.update(size=path.stat().st_size, sha256=file_sha256(path))
    (folder / CARD_NAME).write_text(json.dumps({**card, **changes}), encoding="utf-8")


WRONG_GOLDEN = [{"item_ids": [1, 2, 3], "recommendations": [4, 3, 2, 1, 0], "scores": [5.0, 4.0, 3.0, 2.0, 1.0]}]
REFUSED = {
    "a wrong digest": ({"spoil": alter}, "SHA-256"),
    "a truncated file": ({"spoil": cut}, "cut short"),
    "a wrong contract": ({"spoil": with_a_misfit_input}, "input context is unknown"),
    "too few recommendations": ({"spoil": of_the_older_form_with_too_few}, "returns 3 at most"),
    "a vocabulary of another size": ({"keys": 49}, "has 49 keys and the catalogue 50 items"),
    "a vocabulary whose numbers are out of range": (
        {"keys": 50, "spoil": with_numbers_out_of_range},
        "does not lead from every item to a key and back",
    ),
    "golden answers that differ": ({"golden": WRONG_GOLDEN}, "does not give its card's answer"),
    "a card of tomorrow": ({"schema_version": 99}, "schema version 99"),
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_a_bad_version_is_refused_and_the_old_one_serves(models: Path, serve: ServeHere, fault: str) -> None:
    spoilt, reason = REFUSED[fault]
    async with serve(model=models, **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        write_version(models / "2", 2, **spoilt)  # type: ignore[arg-type]
        seen = await until(server, lambda seen: seen.refused is not None)

        assert (seen.refused, seen.serving) == ("shop@2", "shop@1")
        (told,) = await client.list_models(timeout=TIMEOUT)
        assert (told.refused_version, told.reference) == ("shop@2", str(models))
        assert told.refusal == "VERSION_REFUSED: the version did not pass its checks; the server's log says why"
        assert reason in (seen.refusal or "")
        assert await answer(client) == ("shop@1", answer_of(1))


async def test_a_refused_version_that_was_mended_serves(models: Path, serve: ServeHere) -> None:
    async with serve(model=models, **FOLLOWING) as server:
        write_version(models / "2", 2, spoil=cut)
        await until(server, lambda seen: seen.refused == "shop@2")
        write_version(models / "2", 2)
        seen = await until(server, lambda seen: seen.serving == "shop@2" and seen.outcomes["served"] == 1)

    assert seen.outcomes == {"served": 1, "refused": 1, "overtaken": 0, "rolled_back": 0}


async def test_a_version_that_is_too_slow_is_refused(models: Path, serve: ServeHere) -> None:
    async with serve(model=models, longest_run_ms=20, threads=1, max_batch_size=4, **FOLLOWING) as server:
        write_version(models / "2", 2, burn=100)
        seen = await until(server, lambda seen: seen.refused is not None)

    assert "is too slow" in (seen.refusal or "")


async def test_a_refused_version_is_not_tried_again_and_the_next_one_is(models: Path, serve: ServeHere) -> None:
    async with serve(model=models, **FOLLOWING) as server:
        write_version(models / "2", 2, spoil=alter)
        await until(server, lambda seen: seen.refused == "shop@2")
        write_version(models / "3", 3)
        seen = await until(server, lambda seen: seen.serving == "shop@3" and seen.outcomes["served"] == 1)

    assert seen.outcomes == {"served": 1, "refused": 1, "overtaken": 0, "rolled_back": 0}
    assert seen.refused is None


async def test_a_start_with_a_bad_newest_version_serves_the_one_before(models: Path, serve: ServeHere) -> None:
    write_version(models / "2", 2, spoil=alter)
    async with serve(model=models, **FOLLOWING) as server:
        assert server.model.label == "shop@1"
        assert server.followings()[0].refused == "shop@2"


async def test_a_start_without_any_good_version_is_refused(tmp_path: Path, serve: ServeHere) -> None:
    write_version(tmp_path / "shop" / "1", 1, spoil=alter)
    with pytest.raises(ModelError, match="SHA-256"):
        async with serve(model=tmp_path / "shop", **FOLLOWING):
            pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no version of a model"):
        async with serve(model=tmp_path / "empty", **FOLLOWING):
            pass


async def test_half_a_copy_is_no_version(models: Path, serve: ServeHere) -> None:
    whole = write_version(models.parent / "elsewhere", 2)
    async with serve(model=models, **FOLLOWING) as server:
        (models / "2").mkdir()
        shutil.copy(whole / MODEL_NAME, models / "2")
        write_version(models / "1", 3)
        seen = await until(server, lambda seen: seen.outcomes["served"] == 1)
        assert seen.serving == "shop@1"
        shutil.copy(whole / CARD_NAME, models / "2")
        await until(server, lambda seen: seen.serving == "shop@2")


async def test_a_version_that_goes_while_it_is_proven_is_refused_and_the_next_wish_counts(
    models: Path, serve: ServeHere
) -> None:
    async with serve(model=models, **FOLLOWING) as server:
        write_version(models / "2", 2)
        await until(server, lambda seen: seen.loading == "shop@2")
        shutil.rmtree(models / "2")
        seen = await until(server, lambda seen: seen.loading is None)
        assert seen.serving == "shop@1"
        assert seen.outcomes["refused"] + seen.outcomes["overtaken"] == 1


@pytest.mark.slow  # two versions are proven, each in a process
async def test_two_promotions_in_a_row_end_with_the_last(models: Path, serve: ServeHere) -> None:
    async with (
        serve(model=models, **FOLLOWING) as server,
        Client(f"127.0.0.1:{server.port}") as client,
        load(client) as answers,
    ):
        write_version(models / "2", 2)
        await until(server, lambda seen: seen.loading == "shop@2")
        write_version(models / "3", 3)
        seen = await until(server, lambda seen: seen.serving == "shop@3")

    assert seen.outcomes == {"served": 1, "refused": 0, "overtaken": 1, "rolled_back": 0}
    assert "shop@2" not in Counter(got.model_version for got in answers)


async def test_a_version_is_counted_as_soon_as_it_serves_however_long_the_source_takes_to_note_it(
    models: Path, serve: ServeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = threading.Event()
    async with serve(model=models, **FOLLOWING) as server:
        monkeypatch.setattr(FolderSource, "keep", lambda *_: noted.wait(PATIENCE))
        try:
            write_version(models / "2", 2)
            seen = await until(server, lambda seen: seen.serving == "shop@2")
        finally:
            noted.set()

    assert seen.outcomes["served"] == 1


@pytest.mark.parametrize("error", [OSError("no space left on device"), TypeError("a note that is no object")])
async def test_a_version_that_the_source_cannot_note_serves_all_the_same(
    models: Path, serve: ServeHere, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(FolderSource, "keep", fail)
    async with serve(model=models, **FOLLOWING) as server:
        write_version(models / "2", 2)
        await until(server, lambda seen: seen.serving == "shop@2")
        write_version(models / "3", 3)
        seen = await until(server, lambda seen: seen.serving == "shop@3")

    assert (seen.outcomes["served"], seen.outcomes["refused"], seen.refused) == (2, 0, None)


async def test_a_folder_that_goes_away_changes_nothing_and_is_told(models: Path, serve: ServeHere) -> None:
    async with serve(model=models, **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        hidden = models.rename(models.with_name("hidden"))  # noqa: ASYNC240 (one call)
        seen = await until(server, lambda seen: seen.failing is not None)
        assert "cannot be read" in (seen.failing or "")
        assert seen.failing_since is not None
        told = (await client.get_model("shop", timeout=TIMEOUT)).source_failure
        assert told == "SOURCE_UNREACHABLE: the source of the model cannot be asked; the server's log says why"
        assert await answer(client) == ("shop@1", answer_of(1))
        hidden.rename(models)
        await until(server, lambda seen: seen.failing is None)
