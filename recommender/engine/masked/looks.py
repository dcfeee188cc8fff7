"""Looks: the allowed items of a row's best blocks, and of blocks that may hold better items.

The model gives a bound of the scores in each block, see `bounds.py`. The row first ranks the allowed items of the
blocks with the largest bounds. The k-th score that it finds is a lower bound of the answer. So only blocks with bounds
at least as large are looked at once more. The result is exact, equal scores included.

A block without allowed items is never looked at. So the cost is in allowed items, whatever their share, and about the
same for every share: if few are allowed, more blocks are looked at for as many items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.domain import Query, Ranking
from recommender.engine.masked.named import Ids, Named, allowed_of, without_excluded
from recommender.masks import ItemMask, counts_of

_DEVIATIONS = 3
"""By how many standard deviations a first look takes more blocks than it needs, if masks and scores are independent."""
_ROUNDING = 1e-12
_GROUPS = 8
"""Groups for each bound that is wanted."""
_MOST_TIED = 4
"""A first look at this many times the blocks that it wanted is abandoned: their bounds are equal and do not help."""
_MOST_SHARE = 16
"""A second look at more than one item in so many of the catalogue is given up: other ways are quicker."""

Bits: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Items of a catalogue's full blocks that masks allow: bits [blocks, bytes of a block], and a count per block."""

    bits: Bits
    counts: Bits

    @classmethod
    def of(cls, masks: tuple[ItemMask, ...], blocks: int, size: int) -> _Allowed:
        """All that each of the masks allows, in so many blocks of `size` items, a multiple of 8."""
        width = size // 8
        bits = _cut(masks[0].bits, blocks * width)
        if len(masks) == 1:
            return cls(bits.reshape(blocks, width), _cut(masks[0].counts(size), blocks))
        for mask in masks[1:]:
            bits = bits & _cut(mask.bits, blocks * width)
        return cls(bits.reshape(blocks, width), counts_of(bits, size))

    def items(self, blocks: Ids) -> Ids:
        """The allowed items of these blocks, ascending if they are."""
        size = 8 * self.bits.shape[1]
        # Of bools numpy finds the true ones three to ten times as fast as of bytes.
        found = np.flatnonzero(np.unpackbits(self.bits[blocks], bitorder="little").view(np.bool_))
        order = found // size
        return np.asarray(found + (blocks[order] - order) * size)


Combined: TypeAlias = dict[tuple[ItemMask, ...], _Allowed]
"""Items that sets of masks allow together, for a batch whose rows share them."""


@dataclass(frozen=True, slots=True)
class Look:
    """The items that a row looks at first; `floor` is the least bound of their blocks."""

    first: Named
    bounds: npt.NDArray[np.float32]
    floor: np.float32
    allowed: _Allowed

    def rest(self, found: Ranking) -> Named | None:
        """The items, none or some, that may be better than what the first look found; None if they are too many."""
        query = self.first.query
        least = np.float32(found.scores[-1] if len(found.scores) == query.k else -np.inf)
        if least >= self.floor:
            return Named(self.first.place, query, np.empty(0, np.int64))
        blocks = np.flatnonzero(self.bounds >= least)
        blocks = blocks[(self.bounds[blocks] < self.floor) & (self.allowed.counts[blocks] > 0)]
        size = 8 * self.allowed.bits.shape[1]
        if self.allowed.counts[blocks].sum(dtype=np.int64) * _MOST_SHARE > len(self.bounds) * size:
            return None
        return Named(self.first.place, query, without_excluded(self.allowed.items(blocks), query))


def look_of(
    place: int, query: Query, bounds: npt.NDArray[np.float32], size: int, items: int, combined: Combined
) -> Look | None:
    """The first look of a row; None if the bounds of its blocks of `size` items do not distinguish these.

    The catalogue has `items` items; those after the last full block are always looked at.
    """
    allowed = combined.get(query.masks)
    if allowed is None:
        allowed = combined[query.masks] = _Allowed.of(query.masks, len(bounds), size)
    filled = allowed.counts > 0
    number = int(np.count_nonzero(filled))
    total = int(np.add.reduce(allowed.counts, dtype=np.int64))
    # The best of a block is allowed with this chance. Of n blocks, n · chance have a good item for the answer.
    chance = total / max(number * size, 1)
    wanted = needed(query.k, chance) if total else 0
    floor = _floor(bounds, wanted * len(bounds) // max(number, 1))
    blocks = np.flatnonzero((bounds >= floor) & filled)
    if len(blocks) > _MOST_TIED * (wanted + _GROUPS):
        return None
    ids = allowed.items(blocks)
    if items > len(bounds) * size:
        after = np.arange(len(bounds) * size, items)
        ids = np.concatenate([ids, after[allowed_of(after, query.masks)]])
    return Look(Named(place, query, without_excluded(ids, query)), bounds, floor, allowed)


def needed(k: int, share: float) -> int:
    """The number of items of which k are allowed, but for one case in some hundreds; `share` is above 0."""
    # Of n items, n · share are allowed, give or take a deviation of √(n · share · (1 - share)).
    spread = _DEVIATIONS * math.sqrt(share * (1 - share))
    number = ((spread + math.sqrt(spread**2 + 4 * share * k)) / (2 * share)) ** 2
    return math.ceil(number * (1 - _ROUNDING))


def looked_at(k: int, share: float, block: int) -> float:
    """About how many items of blocks of `block` a row looks at; `share` of all is allowed, above 0."""
    return needed(k, share) * share * block


def _floor(bounds: npt.NDArray[np.float32], wanted: int) -> np.float32:
    """A number that at least so many of the bounds reach, and hardly more; -inf if all may be wanted."""
    if wanted >= len(bounds):
        return np.float32(-np.inf)
    # To sort all of them out would take most of a look's time. The best are seldom in one group with each other.
    size = max(len(bounds) // (_GROUPS * max(wanted, 1)), 1)
    groups = len(bounds) // size
    best = bounds[: size * groups].reshape(size, groups).max(axis=0)
    rank = groups - max(wanted, 1)
    return np.float32(np.partition(best, rank)[rank])


def _cut(bits: Bits, size: int) -> Bits:
    """The first numbers of a mask, padded if it is for fewer items."""
    return bits[:size] if len(bits) >= size else np.pad(bits, (0, size - len(bits)))
