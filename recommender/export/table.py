"""The item table as stored in a model file: one row an item, one copy for every use.

The table is float32 [rows, columns]. Row i is item i; after the last item come zero rows up to whole slabs. A block is
the items whose largest score the head keeps; a slab is the blocks whose scores it computes in one step. An item bias is
one more column, which is multiplied by a 1 at the end of the user vector. An item that is never recommended has the
bias `NEVER` there, which the head recognises in its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.export.errors import ExportError

# What the table is called in every graph.
TABLE = "item_table"
# The bias of an item that is never recommended: finite, so that no product of it is NaN, and below every real score.
NEVER = -(2.0**127)
# Small enough for the scores of a batch to stay in the third cache, large enough for the threads to meet seldom.
_SLAB_ITEMS = 32_768
# Up to here all scores at once are quickest, at any batch size.
_ONE_SLAB_ITEMS = 65_536
# The larger the catalogue, the more there is to select from and the less a chosen block matters.
_BLOCK, _LARGE_BLOCK, _LARGE_CATALOGUE = 32, 64, 200_000


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table of this many items is cut; `columns` counts a bias column too. A `plain` one is not cut at all."""

    items: int
    columns: int
    plain: bool = False

    @property
    def block(self) -> int:
        """Items in one block: a size that leaves no tail, where there is one near the best."""
        if self.plain:
            return self.items
        best = _BLOCK if self.items < _LARGE_CATALOGUE else _LARGE_BLOCK
        near = (best, *range(best + 8, best * 3 // 2 + 1, 8), *range(best - 8, best // 2, -8))
        return next((size for size in near if self.items % size == 0), best)

    @property
    def slabs(self) -> int:
        """Slabs in the table; all are equal. A small table is one."""
        return 1 if self.plain or self.items <= _ONE_SLAB_ITEMS else -(-self.items // _SLAB_ITEMS)

    @property
    def blocks(self) -> int:
        """Blocks in one slab, the fewest that do, so that padding stays below one block a slab."""
        return -(-self.items // (self.slabs * self.block))

    @property
    def full_blocks(self) -> int:
        """Blocks that hold real items only, counted over the whole table."""
        return self.items // self.block

    @property
    def rows(self) -> int:
        """Rows of the table, padding included."""
        return self.slabs * self.blocks * self.block

    @property
    def tail(self) -> int:
        """Items after the last full block."""
        return self.items % self.block


def pack(
    embeddings: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None, layout: Layout
) -> npt.NDArray[np.float32]:
    """Embeddings [items, d] and bias [items] as one table; ExportError where a number is NaN or infinite.

    A layout with a column more than `d` has a bias column, of zeros if there is no bias.
    """
    for name, values in (("item embeddings", embeddings), ("item bias", bias)):
        if values is not None and not np.isfinite(values).all():
            rows = np.unique(np.argwhere(~np.isfinite(values))[:, 0])
            raise ExportError(
                f"The {name} hold NaN or infinity for {len(rows)} of {len(values)} items (the first: item {rows[0]}); "
                "a model must score every item with a finite number. Repair or retrain it, then export again."
            )
    table = np.zeros((layout.rows, layout.columns), np.float32)
    table[: layout.items, : embeddings.shape[1]] = embeddings
    if bias is not None:
        table[: layout.items, -1] = bias
    return table


def hide(table: npt.NDArray[np.float32], never: Sequence[int]) -> None:
    """Give these items the bias `NEVER`, in place; the table has a bias column."""
    table[list(never), -1] = NEVER
