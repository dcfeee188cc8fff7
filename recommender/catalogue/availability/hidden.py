"""What is hidden of one version's items: the keys of lists, looked up once, and the mask that is made of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from recommender.catalogue.availability.lists import KeyList
from recommender.masks import ItemMask

_SHOWN = 3


class Keys(Protocol):
    """A vocabulary."""

    def ids(self, keys: Iterable[str]) -> Sequence[int | None]:
        """The item id of each key, None if it is no item's."""


class HiddenItems:
    """The hidden items of a version that has so many `items`, and a vocabulary or none; for one thread at a time.

    The keys of a version without a vocabulary are all unknown.
    """

    def __init__(self, items: int, vocabulary: Keys | None) -> None:
        self.unknown = 0
        """Keys of the list that the version does not have."""
        self.some_unknown: Sequence[str] = ()
        """The first few of them."""
        self._vocabulary = vocabulary
        self._listed = np.zeros(items, np.bool_)

    def read(self, listed: KeyList) -> None:
        """Take this list for the one that is in force. Blocks for a second where it has a million keys."""
        hidden = np.zeros_like(self._listed)
        unknown: list[str] = []
        self.unknown = 0
        for keys in listed.parts():
            ids = [None] * len(keys) if self._vocabulary is None else self._vocabulary.ids(keys)
            # A vocabulary may have more keys than the model has items to recommend.
            hidden[[item for item in ids if item is not None and item < len(hidden)]] = True
            self.unknown += sum(item is None for item in ids)
            if len(unknown) < _SHOWN:
                unknown += [key for key, item in zip(keys, ids, strict=True) if item is None][:_SHOWN]
            time.sleep(0)  # the event loop gets the GIL between two parts
        self._listed, self.some_unknown = hidden, unknown[:_SHOWN]

    def mask(self) -> ItemMask | None:
        """The items that are not hidden; None if nothing is."""
        return ItemMask(~self._listed) if self._listed.any() else None
