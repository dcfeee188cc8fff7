"""Keys: the strings of a model's items, users or event types, in a compact file that is mapped.

The file is a MARISA trie (Yata 2011, "Recursive LOUDS tries"), which shares what keys have in common, then two int32
arrays between the trie's own numbering and item ids, then a footer with their offsets. Unread pages stay on disk, and
processes share the others.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import marisa_trie
import numpy as np
import numpy.typing as npt

from recommender.engine.files import open_regular
from recommender.errors import ModelError

_MAGIC = b"RECVOCA1"
_FOOTER = struct.Struct("<QQ8s")
"""Bytes of the padded trie, number of keys, magic."""
_ALIGNMENT = 8
_SAMPLED = 256
_FIELD_BYTES = 3
"""The tag and the length before a string of a message."""
_MOST_TRIED = 1_000_000
"""Keys that a check looks up both ways: some three seconds."""
_TRIED_AT_ONCE = 10_000
Of: TypeAlias = Literal["item", "user", "type", "token"]
"""The kind of thing that keys name."""
_WHOLE: dict[Of, str] = {"item": "catalogue", "user": "model", "type": "model", "token": "card"}


class Vocabulary:
    """Keys to ids and back; `len()` is the number of keys, one for each thing they name."""

    def __init__(self, trie: marisa_trie.Trie, item_of: npt.NDArray[np.int32], place_of: npt.NDArray[np.int32]) -> None:
        self._trie = trie
        self._item_of = item_of
        self._place_of = place_of
        sampled = range(0, len(self), max(len(self) // _SAMPLED, 1))
        self.usual_bytes = max(len(key.encode()) for key in self.keys(sampled)) + _FIELD_BYTES
        """Bytes that a key takes in a reply: those of the longest of some hundred keys at even distances."""

    @classmethod
    def open(cls, path: Path, items: int, of: Of = "item") -> Vocabulary:
        """Map a file that `write_vocabulary` wrote for so many `items`: users, types, or tokens of a feature.

        Raises ModelError if it is not one, or if its numbers do not lead from every item to a key and back.
        """
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(size - _FOOTER.size, 0))
            footer = file.read()
        if len(footer) != _FOOTER.size or not footer.endswith(_MAGIC):
            raise ModelError(f"{path} is not a vocabulary; write it with `recommender export --vocabulary`")
        trie_size, count, _ = _FOOTER.unpack(footer)
        if size != trie_size + 2 * 4 * count + _FOOTER.size:
            raise ModelError(f"{path} was cut short or altered; copy it again, or export it again with its model")
        if count != items:
            raise ModelError(
                f"{path} has {count} keys and the {_WHOLE[of]} {items} {of}s: every {of} needs one; "
                "export the model again"
            )
        trie = marisa_trie.Trie()
        try:
            trie.mmap(str(path))
        except RuntimeError as error:
            raise ModelError(f"{path} holds no readable trie: {error}; export the model again") from error
        numbers = np.memmap(path, np.int32, "r", offset=trie_size, shape=(2, count))
        if len(trie) != count or not _are_inverse(numbers[0], numbers[1]):
            raise ModelError(f"{path} does not lead from every item to a key and back; export the model again")
        try:
            return cls(trie, numbers[0], numbers[1])
        except (KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} holds a key that is not text: {error}; export the model again") from error

    def __len__(self) -> int:
        return len(self._item_of)

    def ids(self, keys: Iterable[str]) -> list[int | None]:
        """The item id of each key, None where it is no item's."""
        get, item_of = self._trie.get, self._item_of
        # `get` ends a key at its first NUL, and no key of the file holds one.
        places = [None if "\0" in key else get(key) for key in keys]
        return [None if place is None else item_of.item(place) for place in places]

    def id(self, key: str) -> int | None:
        """The item id of a key, None if it is no item's."""
        place = None if "\0" in key else self._trie.get(key)
        return None if place is None else self._item_of.item(place)

    def keys(self, ids: Iterable[int]) -> list[str]:
        """The key of each item id; IndexError if one is not in the catalogue."""
        places: list[int] = self._place_of[list(ids)].tolist()
        return list(map(self._trie.restore_key, places))

    def check(self) -> None:
        """Look keys up both ways: all, or of a large catalogue a million at even distances.

        Raises ModelError if one is not text, is empty, or does not lead back to its item. Blocks.
        """
        tried = range(0, len(self), -(-len(self) // _MOST_TRIED))
        for start in range(0, len(tried), _TRIED_AT_ONCE):
            items = tried[start : start + _TRIED_AT_ONCE]
            try:
                keys = self.keys(items)
            except (KeyError, UnicodeDecodeError) as error:
                raise ModelError(
                    f"the vocabulary holds a key that is not text: {error}; export the model again"
                ) from error
            if not all(keys) or self.ids(keys) != list(items):
                raise ModelError(
                    f"the vocabulary does not lead from items {items[0]} to {items[-1]} to their keys and back; "
                    "export the model again"
                )


def _are_inverse(item_of: npt.NDArray[np.int32], place_of: npt.NDArray[np.int32]) -> bool:
    """Whether both are permutations, each the inverse of the other."""
    count = len(place_of)
    if count == 0 or place_of.min() < 0 or place_of.max() >= count:
        return False
    return bool((item_of[place_of] == np.arange(count, dtype=np.int32)).all())


def write_vocabulary(keys: Sequence[str], path: Path) -> None:
    """Write a vocabulary: key i names item i. Raises ValueError if a key is repeated, empty or holds NUL."""
    if not all(keys):
        raise ValueError(f"key {list(keys).index('')} is empty; every item needs a key")
    for item, key in enumerate(keys):
        if "\0" in key:
            raise ValueError(f"key {item}, {key!r}, holds a NUL character, which the file format cannot")
    trie = marisa_trie.Trie(keys)
    if len(trie) != len(keys):
        twice, _ = Counter(keys).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is repeated; every item needs its own key")
    item_of = np.empty(len(keys), np.int32)
    place_of = np.fromiter((trie.key_id(key) for key in keys), np.int32, len(keys))
    item_of[place_of] = np.arange(len(keys), dtype=np.int32)
    packed = trie.tobytes()
    packed += bytes(-len(packed) % _ALIGNMENT)
    with path.open("wb") as file:
        for part in (packed, item_of.tobytes(), place_of.tobytes(), _FOOTER.pack(len(packed), len(keys), _MAGIC)):
            file.write(part)
