"""A bounded cache of what filters select."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypeAlias

from recommender.catalogue.attributes.filters import Filter
from recommender.masks import ItemMask

Key: TypeAlias = tuple[int, int, Filter]
"""The number of a version's attributes, that of the table, that of the attributes from calls, and the filter."""
_OVERHEAD = 512
"""Approximate bytes of an entry besides its mask and text."""


class MaskCache:
    """Masks by their filters, `most_bytes` in all; the one that was not asked for the longest goes first.

    Threads may share it. `evicted` counts the masks that went.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self.evicted = 0
        self._masks: OrderedDict[Key, ItemMask] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: Key) -> bool:
        return key in self._masks

    def get(self, key: Key) -> ItemMask | None:
        """The mask of a filter; None if it is not there."""
        with self._lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
            return mask

    def put(self, key: Key, mask: ItemMask) -> None:
        """Keep a mask, and evict others to make room. A mask larger than the whole cache is not kept."""
        size = _size(key, mask)
        with self._lock:
            if key in self._masks or size > self._most:
                return
            self._masks[key] = mask
            self._bytes += size
            while self._bytes > self._most:
                self._bytes -= _size(*self._masks.popitem(last=False))
                self.evicted += 1

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._masks.clear()
            self._bytes = 0


def _size(key: Key, mask: ItemMask) -> int:
    text, parameters = key[2]
    values = sum(
        len(name) + (len(value) * 64 if isinstance(value, str | tuple) else 32) for name, _, value in parameters
    )
    return mask.nbytes + 4 * len(text) + values + _OVERHEAD
