"""Masks: which items of a catalogue an answer may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_LISTED = 32
"""Masks that allow one item in this many, or fewer, keep a list of these as well as their bits."""

_WORD = 8
"""Bytes of 64 items."""
_SMALLEST = 40
"""Items of the smallest block of a large catalogue."""


class ItemMask:
    """The items that an answer may hold, of a catalogue with as many items as the bool array `allowed`.

    Immutable, and shared by reference: a mask equals itself only, so make one per filter and catalogue, not per
    request. It takes a bit an item, and a byte a block once it is counted by blocks. `items` is the size of the
    catalogue, `count` how many are allowed. Items beyond the catalogue are not allowed.
    """

    __slots__ = ("__weakref__", "_bits", "_counts", "_ids", "count", "items")

    def __init__(self, allowed: npt.NDArray[np.bool_]) -> None:
        self.items = len(allowed)
        self.count = int(np.count_nonzero(allowed))
        self._bits = np.packbits(allowed, bitorder="little")
        self._bits.flags.writeable = False
        self._counts: tuple[int, npt.NDArray[np.uint8]] | None = None
        self._ids = np.flatnonzero(allowed).astype(np.int32) if self.count * _LISTED <= self.items else None

    @classmethod
    def without(cls, items: int, barred: Iterable[int]) -> ItemMask:
        """All of so many items but these, of which those beyond the catalogue do not matter."""
        allowed = np.ones(items, np.bool_)
        ids = np.fromiter(barred, np.int64)
        allowed[ids[(ids >= 0) & (ids < items)]] = False
        return cls(allowed)

    @classmethod
    def combined(cls, inside: Sequence[ItemMask], outside: Sequence[ItemMask]) -> ItemMask:
        """The items that all of the first masks allow and none of the others, which are of one size; one at least."""
        first = (*inside, *outside)[0]
        bits = np.full_like(first.bits, 255)
        for mask in inside:
            bits &= mask.bits
        for mask in outside:
            bits &= ~mask.bits
        if first.items % 8 and len(bits):
            bits[-1] &= (1 << first.items % 8) - 1
        return cls(np.unpackbits(bits, count=first.items, bitorder="little").view(np.bool_))

    @property
    def bits(self) -> npt.NDArray[np.uint8]:
        """A bit an item, the lowest of each byte first; read-only."""
        return self._bits

    def counts(self, size: int) -> npt.NDArray[np.uint8]:
        """How many of each block of `size` items are allowed, a multiple of 8 below 256; the last block may be cut."""
        if self._counts is None or self._counts[0] != size:
            self._counts = size, counts_of(self._bits, size)
        return self._counts[1]

    @property
    def nbytes(self) -> int:
        """Its size in bytes, with counts that have not been made yet."""
        return self._bits.nbytes + self.items // _SMALLEST + (0 if self._ids is None else self._ids.nbytes)

    def ids(self) -> npt.NDArray[np.int64]:
        """The allowed items, ascending."""
        if self._ids is not None:
            return self._ids.astype(np.int64)
        return np.flatnonzero(np.unpackbits(self._bits, count=self.items, bitorder="little"))

    def holds(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these items, none negative, are allowed."""
        within = ids < self.items
        known = ids if within.all() else np.where(within, ids, 0)
        held = (self._bits[known >> 3] >> (known & 7).astype(np.uint8)) & 1 if self.items else np.zeros(len(ids))
        return held.astype(np.bool_) & within

    def count_with(self, others: Iterable[ItemMask]) -> int:
        """How many items this mask and all others, which are of its size, allow."""
        bits = self._bits
        for other in others:
            bits = bits & other.bits
        return self.count if bits is self._bits else int(np.bitwise_count(bits).sum())

    def __repr__(self) -> str:
        return f"<ItemMask {self.count} of {self.items} items>"


def counts_of(bits: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """How many bits of each `size`, a multiple of 8 below 256, are set; the last ones may be fewer."""
    width = size // 8
    whole = np.pad(bits, (0, -len(bits) % width)) if len(bits) % width else bits
    if width == _WORD:
        return np.bitwise_count(whole.view(np.uint64))
    counts = np.zeros(len(whole) // width, np.uint8)
    for column in whole.reshape(-1, width).T:
        counts += np.bitwise_count(column)
    return counts
