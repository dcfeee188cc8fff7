"""Lists of a whole column at once: a flat array of ids, and where each row's list begins and how long it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

NOBODY = -1
"""The id of a key that has none."""
_SURELY_SHORT = 64
"""Characters of a key that is within the limit of a request however it is encoded."""


class Lists(NamedTuple):
    """Row i has `values[starts[i] : starts[i] + lengths[i]]`; all int64."""

    values: Ints
    starts: Ints
    lengths: Ints

    def take(self, rows: Ints | slice) -> Lists:
        """The lists of some rows, on the same values."""
        return Lists(self.values, self.starts[rows], self.lengths[rows])

    def last(self, most: int | None) -> Lists:
        """The last `most` values of each list; None for all."""
        if most is None or not len(self.lengths) or int(self.lengths.max()) <= most:
            return self
        kept = np.minimum(self.lengths, most)
        return Lists(self.values, self.starts + self.lengths - kept, kept)

    def flat(self) -> Ints:
        """The values of all lists, one after the other."""
        ends = np.cumsum(self.lengths)
        total = int(ends[-1]) if len(ends) else 0
        found: Ints = self.values[np.repeat(self.starts - ends + self.lengths, self.lengths) + np.arange(total)]
        return found

    def padded(self, widths: Ints, padding: int) -> Ints:
        """The values of all lists, one after the other, each list filled up to its width."""
        if np.array_equal(self.lengths, widths):
            return self.flat()
        lengths = self.lengths
        cells = np.full(int(widths.sum()), padding, np.int64)
        # How far the padding before it moves a list to the right.
        moved = np.cumsum(widths - lengths) - (widths - lengths)
        cells[np.arange(int(lengths.sum())) + np.repeat(moved, lengths)] = self.flat()
        return cells

    def outside(self, end: int) -> Flags:
        """Whether a row's list holds a value that is negative, `end` or more."""
        # Read without its sign, a negative number is beyond every end.
        wrong = self.values.view(np.uint64) >= end
        if not wrong.any():
            return np.zeros(len(self.lengths), np.bool_)
        before = np.concatenate(([0], np.cumsum(wrong)))
        found: Flags = before[self.starts + self.lengths] > before[self.starts]
        return found


def no_lists(rows: int) -> Lists:
    """Empty lists."""
    return Lists(np.empty(0, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64))


def lists_of(column: pa.ListArray, ids_of: Callable[[Sequence[str]], Sequence[int | None]] | None = None) -> Lists:
    """Return the lists of a column of ids, or of keys by `ids_of`, with NOBODY for unknown keys. A null is empty.

    Each different key is looked up once.
    """
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = column.flatten()
    values = numbers(flat) if ids_of is None else ids_of_keys(flat, ids_of)
    return Lists(values, np.cumsum(lengths) - lengths, lengths)


def numbers(column: pa.Array) -> Ints:
    """Return the numbers of a column, with NOBODY for nulls."""
    if column.null_count:
        column = pc.fill_null(column, NOBODY)
    found: Ints = pc.cast(column, pa.int64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def ids_of_keys(column: pa.Array, ids_of: Callable[[Sequence[str]], Sequence[int | None]]) -> Ints:
    """Return the ids of a column of keys, with NOBODY for nulls, unknown keys and keys of uncommon length."""
    encoded = column.dictionary_encode()
    keys: list[str] = encoded.dictionary.to_pylist()
    found = [
        NOBODY if each is None or len(key) > _SURELY_SHORT else each
        for key, each in zip(keys, ids_of(keys), strict=True)
    ]
    table = np.array([*found, NOBODY], np.int64)
    ids: Ints = table[numbers(encoded.indices)]
    return ids
