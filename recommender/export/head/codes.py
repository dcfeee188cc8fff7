"""Codes: the item table in 8 bits, with bounds of its error.

Column j of the table is coded as whole numbers q between -127 and 127: e ≈ middle_j + step_j · q. They are stored in
the file as q + 128, one row an item, so one copy serves the product (on its left, read as stored) and look-ups.

A few items far longer than all others would use up the steps, and the others could not be distinguished. Such items are
not coded: a ranking scores all of them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.export.table import Layout

CODES = "item_codes"
"""Name of the codes in every graph."""
ZERO = 128
"""Stored value of the code 0."""
_ITEM_CODES = 127
# Slabs are as large as their sums of products stay in the second caches: smaller for a larger batch.
_SLAB_ITEMS = 65_536
MOST_SHARES = 16
"""A slab may be cut into any power of two of equal shares up to this."""
# So many items go uncoded where the others are shorter by this.
_LONG_ITEMS, _SHORTER = 256, 0.5
# Rows that are coded at once.
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Codes:
    """A table in 8 bits, `codes` uint8 [slabs, items of a slab, columns], padded, with what the bound needs.

    The maxima are over the items that may be recommended; e is an item's row of the table. Those of the error and
    of q leave out the `long` ones, ids ascending, which are not coded.
    """

    codes: npt.NDArray[np.uint8]
    block: int
    middle: npt.NDArray[np.float32]
    step: npt.NDArray[np.float32]
    item_error: float  # max |e - middle - step q|
    code_norm: float  # max |q|
    vector_norm: float  # max |e|
    long: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, table: npt.NDArray[np.float32], layout: Layout, *, bias: bool = False, never: Sequence[int] = ()
    ) -> Codes:
        """Code a packed table without `NEVER`; `bias` says that its last column is one.

        Items in `never` and long ones get the codes of another item: these choose no block that the other would not.
        Norms are taken in float64.
        """
        items = table[: layout.items]
        if bias:
            items = np.column_stack([items[:, :-1], _raised(items)])
        able = np.ones(layout.items, np.bool_)
        able[list(never)] = False
        coded_ones, long = able.copy(), _long(items, able)
        coded_ones[long] = False
        low, high = (end(items[coded_ones], axis=0).astype(np.float64) for end in (np.min, np.max))
        middle = ((low + high) / 2).astype(np.float32)
        step = np.maximum((high - low) / (2 * _ITEM_CODES), np.finfo(np.float32).tiny).astype(np.float32)
        slabs = -(-layout.items // _SLAB_ITEMS)
        shares = slabs * MOST_SHARES * layout.block
        codes = np.full((-(-layout.items // shares) * shares, layout.columns), ZERO, np.uint8)
        error = code_norm = vector_norm = 0.0
        for start in range(0, layout.items, _CHUNK):
            rows = items[start : start + _CHUNK].astype(np.float64)
            coded = np.clip(np.rint((rows - middle) / step), -_ITEM_CODES, _ITEM_CODES)
            codes[start : start + len(rows)] = coded + ZERO
            known = coded_ones[start : start + _CHUNK]
            rest = rows - middle - coded * step
            error = max(error, float(np.linalg.norm(rest[known], axis=1).max(initial=0)))
            code_norm = max(code_norm, float(np.linalg.norm(coded[known], axis=1).max(initial=0)))
            vectors = rows[able[start : start + _CHUNK]]
            vector_norm = max(vector_norm, float(np.linalg.norm(vectors, axis=1).max(initial=0)))
        _cover(codes, coded_ones)
        in_slabs = codes.reshape(slabs, -1, layout.columns)
        return cls(in_slabs, layout.block, middle, step, error, code_norm, vector_norm, long)

    @property
    def blocks(self) -> int:
        """Blocks in the table, padding included."""
        slabs, items, _ = self.codes.shape
        return int(slabs * items) // self.block


def _long(items: npt.NDArray[np.float32], able: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The items, by id, that are much farther from the middle than all others; none or `_LONG_ITEMS`."""
    known = np.flatnonzero(able)
    if len(known) <= 2 * _LONG_ITEMS:
        return known[:0]
    middle = items[known].mean(axis=0, dtype=np.float64)
    norms = np.concatenate(
        [np.linalg.norm(items[some] - middle, axis=1) for some in np.array_split(known, -(-len(known) // _CHUNK))]
    )
    order = np.argpartition(norms, -_LONG_ITEMS - 1)
    if not norms[order[-_LONG_ITEMS - 1]] < _SHORTER * norms.max():
        return known[:0]
    return np.sort(known[order[-_LONG_ITEMS:]])


def _raised(items: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The biases, the last column of `items`, with those that are far below the others raised to a bound."""
    embeddings, bias = items[:, :-1], items[:, -1]
    middle = np.median(bias)
    spread = max(float(bias.max() - middle), float(np.ptp(embeddings)))
    return np.maximum(bias, np.float32(middle - 2 * spread))


def _cover(codes: npt.NDArray[np.uint8], coded: npt.NDArray[np.bool_]) -> None:
    """Give each item that is not coded the codes of the last one before it that is."""
    known, hidden = np.flatnonzero(coded), np.flatnonzero(~coded)
    codes[hidden] = codes[known[np.maximum(np.searchsorted(known, hidden) - 1, 0)]]
