"""Vocabularies and fallback lists as files: read back unchanged, and refused if damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import marisa_trie
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.errors import ModelError
from recommender.models.fallback import read_fallback, write_fallback
from recommender.models.vocabulary import Vocabulary, write_vocabulary


@given(
    keys=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12),
        min_size=1,
        unique=True,
    )
)
def test_every_key_leads_to_its_item_and_back(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "m.keys"
    write_vocabulary(keys, path)
    vocabulary = Vocabulary.open(path, len(keys))

    assert len(vocabulary) == len(keys)
    assert vocabulary.ids(keys) == list(range(len(keys)))
    assert vocabulary.keys(range(len(keys))) == keys
    strangers = ["x" * 99, "", "\0", *(f"{key}\0" for key in keys), *(f"{key}\0x" for key in keys)]
    assert vocabulary.ids(strangers) == [None] * len(strangers)
    assert [vocabulary.id(key) for key in (*keys, *strangers)] == vocabulary.ids([*keys, *strangers])


@pytest.mark.parametrize(
    ("keys", "reason"), [(["a", "b", "a"], "'a' is repeated"), (["a", ""], "key 1 is empty"), (["a\0"], "NUL")]
)
def test_keys_that_name_no_item_or_two_are_refused(tmp_path: Path, keys: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        write_vocabulary(keys, tmp_path / "m.keys")


def test_a_vocabulary_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    write_vocabulary(["a", "b"], tmp_path / "m.keys")
    with pytest.raises(ModelError, match="has 2 keys and the catalogue 3 items"):
        Vocabulary.open(tmp_path / "m.keys", 3)


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_truncated_vocabulary_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "m.keys"
    write_vocabulary(["a", "b"], path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="is not a vocabulary"):
        Vocabulary.open(path, 2)


def test_a_vocabulary_that_lost_bytes_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.keys"
    write_vocabulary(["a", "b"], path)
    content = path.read_bytes()
    path.write_bytes(content[:40] + content[48:])
    with pytest.raises(ModelError, match="cut short or altered"):
        Vocabulary.open(path, 2)


def numbers_of(path: Path, count: int) -> npt.NDArray[np.int32]:
    """The numbers of a vocabulary's file, places of items and items of places, to be changed in the file."""
    footer = 24
    offset = path.stat().st_size - footer - 2 * 4 * count
    return np.memmap(path, np.int32, "r+", offset=offset, shape=(2, count))


@pytest.mark.parametrize("array", [0, 1])
@pytest.mark.parametrize("number", [-1, 3, 2**31 - 1, "twice"])
def test_numbers_that_lead_to_no_item_or_to_another_are_refused(tmp_path: Path, array: int, number: int | str) -> None:
    write_vocabulary(["a", "b", "c"], tmp_path / "m.keys")
    numbers = numbers_of(tmp_path / "m.keys", 3)
    numbers[array][0] = numbers[array][1] if isinstance(number, str) else number
    numbers.flush()  # type: ignore[attr-defined] # a memmap

    with pytest.raises(ModelError, match="does not lead from every item to a key and back"):
        Vocabulary.open(tmp_path / "m.keys", 3)


def test_a_check_finds_keys_that_no_caller_could_send(tmp_path: Path) -> None:
    path = tmp_path / "m.keys"
    write_vocabulary(["left", "right"], path)
    Vocabulary.open(path, 2).check()
    trie = marisa_trie.BinaryTrie([b"left", b"righ\xff"]).tobytes()
    trie += bytes(-len(trie) % 8)
    path.write_bytes(
        trie + np.array([0, 1, 0, 1], np.int32).tobytes() + struct.pack("<QQ8s", len(trie), 2, b"RECVOCA1")
    )

    with pytest.raises(ModelError, match="a key that is not text"):
        Vocabulary.open(path, 2).check()


def test_keys_are_told_apart_byte_by_byte(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_vocabulary([composed, decomposed], tmp_path / "m.keys")
    vocabulary = Vocabulary.open(tmp_path / "m.keys", 2)
    vocabulary.check()

    assert vocabulary.ids([decomposed, composed, "caf\u00c9"]) == [1, 0, None]


def test_a_fallback_list_comes_back_in_order(tmp_path: Path) -> None:
    write_fallback([3, 0, 2], tmp_path / "list.txt")

    assert read_fallback(tmp_path / "list.txt", 4) == (3, 0, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1\n4\n", "line 2: '4' is not an item id from 0 to 3"),
        ("1\n-1\n", "line 2: '-1' is not an item id"),
        ("1\nx\n", "line 2: 'x' is not an item id"),
        ("1\n\n2\n", "line 2: '' is not an item id"),
        ("1\n2\n1\n", "line 3: item 1 stands in line 1 already"),
        ("", "lists no item"),
    ],
)
def test_a_fallback_list_at_fault_is_refused_with_the_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "list.txt").write_text(text, encoding="ascii")
    with pytest.raises(ModelError, match=reason):
        read_fallback(tmp_path / "list.txt", 4)
