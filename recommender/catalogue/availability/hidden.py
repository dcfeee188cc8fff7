"""The hidden items of one version, by a list and by calls: keys, looked up once, ids, and the mask of both."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from recommender.catalogue.availability.journal import Changes
from recommender.catalogue.availability.lists import KeyList
from recommender.masks import ItemMask

_SHOWN = 3
_PART = 2_000


class Keys(Protocol):
    """A vocabulary."""

    def ids(self, keys: Iterable[str]) -> Sequence[int | None]:
        """The item id of each key, None if it is no item's."""


class HiddenItems:
    """The hidden items of a version `name@version` that has so many `items`, and a vocabulary or none.

    For one thread at a time. The keys of a version without a vocabulary are all unknown.
    """

    def __init__(self, label: str, items: int, vocabulary: Keys | None) -> None:
        self.some_unknown: Sequence[str] = ()
        """The first few keys of the list that the version does not have."""
        self._label = label
        self._vocabulary = vocabulary
        self._listed = np.zeros(items, np.bool_)
        self._keys = np.zeros(items, np.bool_)
        self._ids = np.zeros(items, np.bool_)
        self._unlisted = 0
        self._unlisted_hashes: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._unknown: set[str] = set()

    @property
    def unknown(self) -> int:
        """How many hidden keys the version does not have."""
        return self._unlisted + len(self._unknown)

    def read(self, listed: KeyList) -> None:
        """Take this list for the one that is in force. Blocks for a second where it has a million keys."""
        hidden = np.zeros_like(self._listed)
        unknown: list[str] = []
        hashes: list[int] = []
        self._unlisted = 0
        for keys in listed.parts():
            ids = self._found(keys)
            # A vocabulary may have more keys than the model has items to recommend.
            hidden[[item for item in ids if item is not None and item < len(hidden)]] = True
            lacking = [key for key, item in zip(keys, ids, strict=True) if item is None]
            self._unlisted += len(lacking)
            hashes += map(hash, lacking)
            if len(unknown) < _SHOWN:
                unknown += lacking[:_SHOWN]
            time.sleep(0)  # the event loop gets the GIL between two parts
        self._listed, self.some_unknown = hidden, unknown[:_SHOWN]
        self._unlisted_hashes = np.sort(np.array(hashes, np.int64))

    def follow(self, changes: Changes) -> None:
        """Apply the changes by calls."""
        if changes.whole:
            self._keys[:] = self._ids[:] = False
            self._unknown.clear()
        for start in range(0, len(changes.entries), _PART):
            part = changes.entries[start : start + _PART]
            keyed = [entry for entry in part if not entry.model]
            for entry, item in zip(keyed, self._found([entry.item for entry in keyed]), strict=True):
                if item is None:
                    (self._unknown.add if entry.hidden else self._unknown.discard)(entry.item)
                elif item < len(self._keys):
                    self._keys[item] = entry.hidden
            for entry in part:
                if entry.model == self._label and int(entry.item) < len(self._ids):
                    self._ids[int(entry.item)] = entry.hidden
            time.sleep(0)  # as above

    def mask(self) -> ItemMask | None:
        """The items that are not hidden; None if nothing is."""
        hidden = self._listed | self._keys | self._ids
        return ItemMask(~hidden) if hidden.any() else None

    def beside(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of these keys, none of them the version's, are hidden.

        Of a list's keys that the version lacks only hashes of 64 bits are kept: a million strings would take a hundred
        megabytes. One in 10^13 looks for a hidden key is wrong.
        """
        hidden = np.fromiter((key in self._unknown for key in keys), np.bool_, len(keys))
        if len(self._unlisted_hashes):
            hidden |= np.isin(np.fromiter(map(hash, keys), np.int64, len(keys)), self._unlisted_hashes)
        return hidden

    def _found(self, keys: Sequence[str]) -> Sequence[int | None]:
        return [None] * len(keys) if self._vocabulary is None else self._vocabulary.ids(keys)
