"""Models from disk: found, held to their card, or refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from recommender.errors import ModelError
from recommender.models.artifact import open_artifact
from recommender.models.card import card_path
from recommender.models.sources.file import find_model
from tests.support.paths import WEIGHTS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the reference model with its card, to be damaged."""
    for path in (WEIGHTS / "10_model.onnx", WEIGHTS / "10_model.card.json"):
        shutil.copy(path, tmp_path)
    return tmp_path / "10_model.onnx"


def change_card(model: Path, **changes: Any) -> None:
    path = card_path(model)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


@pytest.mark.parametrize("k", [5, 10])
def test_the_committed_models_are_what_their_cards_say(k: int) -> None:
    artifact = open_artifact(WEIGHTS / f"{k}_model.onnx")

    assert artifact.card is not None
    assert (artifact.card.default_k, artifact.card.items, artifact.name, artifact.version) == (
        k, 10_000, "reference", "1",
    )  # fmt: skip
    assert artifact.path.stat().st_size < 1_500_000
    assert len(artifact.card.golden) >= 3


def test_the_number_picks_the_file_and_a_path_overrides_it(model: Path) -> None:
    assert find_model(model.parent, 10, None) == model
    assert find_model(Path("elsewhere"), 3, model) == model


def test_a_missing_file_is_refused_with_what_exists_and_how_to_make_it(model: Path) -> None:
    with pytest.raises(ModelError) as refused:
        find_model(model.parent, 7, None)

    assert f"that folder has {model.name}" in str(refused.value)
    assert f"recommender export --num-recommendations 7 --output {model.parent / '7_model.onnx'}" in str(refused.value)


def test_a_missing_folder_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        find_model(tmp_path / "nowhere", 10, None)


def test_a_folder_of_a_thousand_models_gets_a_short_message(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number + 100}_model.onnx").touch()
    with pytest.raises(ModelError, match="and 980 more"):
        find_model(tmp_path, 7, None)


def test_an_altered_byte_is_refused(model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ModelError, match=r"SHA-256 .* the file was altered"):
        open_artifact(model)


def test_a_truncated_file_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ModelError, match="the file was cut short"):
        open_artifact(model)


def test_a_file_that_the_card_lists_and_is_not_there_is_refused(model: Path) -> None:
    files = json.loads(card_path(model).read_text())["files"]
    change_card(model, files=[*files, {**files[0], "path": "table.bin", "role": "external_data"}])
    with pytest.raises(ModelError, match=r"table\.bin, which cannot be read"):
        open_artifact(model)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "deep/er"])
def test_a_card_cannot_point_out_of_its_folder(model: Path, path: str) -> None:
    files = json.loads(card_path(model).read_text())["files"]
    change_card(model, files=[*files, {**files[0], "path": path}])
    with pytest.raises(ModelError, match="not in the card's own folder"):
        open_artifact(model)


def test_a_card_of_another_model_is_refused(model: Path) -> None:
    renamed = model.rename(model.with_name("11_model.onnx"))
    card_path(model).rename(card_path(renamed))
    shutil.copy(renamed, model)
    with pytest.raises(ModelError, match=r"does not list 11_model\.onnx as its model"):
        open_artifact(renamed)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff\xfe"])
def test_a_card_that_is_no_card_is_refused(model: Path, content: bytes) -> None:
    card_path(model).write_bytes(content)
    with pytest.raises(ModelError, match=r"card .* is not valid"):
        open_artifact(model)


def test_a_card_of_a_later_schema_is_refused_and_of_later_fields_read(model: Path) -> None:
    change_card(model, a_field_of_tomorrow=1)
    assert open_artifact(model).card is not None
    change_card(model, schema_version=2)
    with pytest.raises(ModelError, match="schema version 2"):
        open_artifact(model)


def test_a_card_of_many_megabytes_is_refused_unread(model: Path) -> None:
    with card_path(model).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="more than 16777216 bytes"):
        open_artifact(model)


def test_a_card_that_lists_a_file_twice_is_refused(model: Path) -> None:
    change_card(model, files=json.loads(card_path(model).read_text())["files"] * 2)
    with pytest.raises(ModelError, match="lists a file twice"):
        open_artifact(model)


@pytest.mark.parametrize("place", ["the card", "a file in it"])
def test_a_fifo_is_refused_and_nobody_waits_for_its_writer(model: Path, place: str) -> None:
    path = card_path(model)
    if place == "a file in it":
        files = json.loads(path.read_text())["files"]
        change_card(model, files=[*files, {**files[0], "path": "m.keys", "role": "vocabulary", "size": 0}])
        path = model.with_name("m.keys")
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    with pytest.raises(ModelError, match="not a regular file"):
        open_artifact(model)


def test_without_a_card_the_digest_is_the_version(model: Path) -> None:
    card_path(model).unlink()
    artifact = open_artifact(model)

    assert artifact.card is None
    assert (artifact.name, artifact.version) == ("10_model", artifact.sha256[:12])
