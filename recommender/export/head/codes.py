"""Codes: the item table in 8 bits, with what is known of its error.

Column j of the table is coded as whole numbers q between -127 and 127: e ≈ middle_j + step_j · q. They stand in the
file as q + 128, one row an item, so one copy serves the product (on its left, read as it stands) and look-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.export.table import Layout

CODES = "item_codes"
"""What the codes are called in every graph."""
ZERO = 128
"""What the code 0 is written as."""
_ITEM_CODES = 127
# Slabs are as large as their sums of products stay in the second caches: smaller for a larger batch.
_SLAB_ITEMS = 65_536
MOST_SHARES = 16
"""A slab may be cut into any power of two of equal shares up to this."""
# Rows that are coded at once.
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Codes:
    """A table in 8 bits, `codes` uint8 [slabs, items of a slab, columns], padded, with what the bound needs.

    The maxima are over the items that may be recommended; e is an item's row of the table.
    """

    codes: npt.NDArray[np.uint8]
    block: int
    middle: npt.NDArray[np.float32]
    step: npt.NDArray[np.float32]
    item_error: float  # max |e - middle - step q|
    code_norm: float  # max |q|
    vector_norm: float  # max |e|

    @classmethod
    def of(
        cls, table: npt.NDArray[np.float32], layout: Layout, *, bias: bool = False, never: Sequence[int] = ()
    ) -> Codes:
        """Code a packed table without `NEVER`; `bias` says that its last column is one.

        Items in `never` get the codes of another item: these choose no block that the other would not. Norms are
        taken in float64.
        """
        items = table[: layout.items]
        if bias:
            items = np.column_stack([items[:, :-1], _raised(items)])
        able = np.ones(layout.items, np.bool_)
        able[list(never)] = False
        low, high = items[able].min(axis=0).astype(np.float64), items[able].max(axis=0).astype(np.float64)
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
            known = able[start : start + _CHUNK]
            rest = rows - middle - coded * step
            error = max(error, float(np.linalg.norm(rest[known], axis=1).max(initial=0)))
            code_norm = max(code_norm, float(np.linalg.norm(coded[known], axis=1).max(initial=0)))
            vector_norm = max(vector_norm, float(np.linalg.norm(rows[known], axis=1).max(initial=0)))
        _cover(codes, able)
        return cls(codes.reshape(slabs, -1, layout.columns), layout.block, middle, step, error, code_norm, vector_norm)

    @property
    def blocks(self) -> int:
        """Blocks in the table, padding included."""
        slabs, items, _ = self.codes.shape
        return int(slabs * items) // self.block


def _raised(items: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The biases, the last column of `items`, with those that lie far below the others raised to a bound."""
    embeddings, bias = items[:, :-1], items[:, -1]
    middle = np.median(bias)
    spread = max(float(bias.max() - middle), float(np.ptp(embeddings)))
    return np.maximum(bias, np.float32(middle - 2 * spread))


def _cover(codes: npt.NDArray[np.uint8], able: npt.NDArray[np.bool_]) -> None:
    """Give each item that is never recommended the codes of the last one before it that may be."""
    known, hidden = np.flatnonzero(able), np.flatnonzero(~able)
    codes[hidden] = codes[known[np.maximum(np.searchsorted(known, hidden) - 1, 0)]]
