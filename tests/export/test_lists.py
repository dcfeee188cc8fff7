"""Vocabularies and fallback lists are exported with a model, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.lists import Lists
from recommender.models.card import Card, card_path, file_sha256
from recommender.models.fallback import read_fallback
from recommender.models.vocabulary import Vocabulary

KEYS = ["tea", "Straße 7", "café", "x\u2028y", "0"]


def _file(folder: Path, *lines: str) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_vocabulary_and_fallback_stand_beside_the_model_and_in_its_card(tmp_path: Path) -> None:
    options = ExportOptions(
        items=5,
        dim=4,
        num_recommendations=2,
        vocabulary=_file(tmp_path, *KEYS),
        fallback=_file(tmp_path, "café", "0"),
        output=tmp_path / "weights" / "2_model.onnx",
    )
    path = export_model(options)
    card = Card.model_validate_json(card_path(path).read_text())
    files = {file.role: file for file in card.files}
    assert [file.role for file in card.files] == ["model", "vocabulary", "fallback"]
    assert (files["vocabulary"].path, files["fallback"].path) == ("2_model.keys", "2_model.fallback.txt")
    for file in card.files:
        assert file.sha256 == file_sha256(path.parent / file.path)
    assert Vocabulary.open(path.parent / "2_model.keys", 5).keys(range(5)) == KEYS
    assert read_fallback(path.parent / "2_model.fallback.txt", 5) == (2, 4)


def test_a_fallback_without_a_vocabulary_lists_item_ids(tmp_path: Path) -> None:
    assert Lists.read(None, _file(tmp_path, "4", "0"), 5) == Lists(None, (4, 0))


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xef\xbb\xbftea\r\ncoffee\r\n")
    assert Lists.read(path, None, 2).keys == ("tea", "coffee")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["a", "b"], "has 2 keys and the catalogue 3 items"),
        (["a", "b", "c", "d"], "has 4 keys and the catalogue 3 items"),
        (["a", "b", "a"], "line 3: 'a' stands in line 1 already"),
        (["a", "", "c"], "line 2 is empty"),
        ([], "is empty"),
    ],
)
def test_a_vocabulary_without_one_key_for_each_item_is_refused(tmp_path: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        Lists.read(_file(tmp_path, *lines), None, 3)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["1", "3"], "line 2: '3' is not an item id from 0 to 2"),
        (["-1"], "line 1: '-1' is not an item id"),
        (["tea"], "line 1: 'tea' is not an item id"),
        (["1", "01"], "line 2: item 1 stands in line 1 already"),
        (["1", "1"], "line 2: '1' stands in line 1 already"),
        ([], "is empty"),
    ],
)
def test_a_fallback_list_that_names_no_item_or_one_twice_is_refused(
    tmp_path: Path, lines: list[str], sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        Lists.read(None, _file(tmp_path, *lines), 3)


def test_a_fallback_key_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="line 1: '0' is not a key of the vocabulary"):
        Lists.read(_file(tmp_path, "a", "b", "c"), _file(tmp_path, "0"), 3)


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.txt cannot be read: No such file"):
        Lists.read(tmp_path / "none.txt", None, 3)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ExportError, match="is not UTF-8 text"):
        Lists.read(tmp_path / "latin.txt", None, 1)
