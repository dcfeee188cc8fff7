"""The item table as it stands in a model file: slabs of blocks of items, one copy for every use.

The table is float32 [slabs, blocks, block, columns]. Item i is row `i % block` of block `i // block`; a slab is
the piece whose scores one step of the head computes. Items are padded with zero rows up to whole slabs.
An item bias is one more column, which meets a user vector that ends in 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.export.errors import ExportError

BLOCK = 32
_SLAB_ITEMS = 65_536


@dataclass(frozen=True, slots=True)
class Layout:
    """Where item i stands in a table of this many items; `columns` counts a bias column too."""

    items: int
    columns: int
    block: int = BLOCK
    slab_items: int = _SLAB_ITEMS

    @property
    def slabs(self) -> int:
        """Slabs in the table; all are equal."""
        return -(-self.items // self.slab_items)

    @property
    def blocks(self) -> int:
        """Blocks in one slab; chosen so that slabs are equal and padding stays below one block a slab."""
        return -(-self.items // (self.slabs * self.block))

    @property
    def full_blocks(self) -> int:
        """Blocks that hold real items only, counted over the whole table."""
        return self.items // self.block

    @property
    def padded_items(self) -> int:
        """Rows of the table, padding included."""
        return self.slabs * self.blocks * self.block

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the table."""
        return self.slabs, self.blocks, self.block, self.columns


def pack(
    embeddings: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None, layout: Layout
) -> npt.NDArray[np.float32]:
    """Embeddings [items, d] and bias [items] as one table; ExportError where a number is NaN or infinite."""
    for name, values in (("item embeddings", embeddings), ("item bias", bias)):
        if values is not None and not np.isfinite(values).all():
            rows = np.unique(np.argwhere(~np.isfinite(values))[:, 0])
            raise ExportError(
                f"The {name} hold NaN or infinity for {len(rows)} of {len(values)} items (the first: item {rows[0]}); "
                "a model must score every item with a finite number. Repair or retrain it, then export again."
            )
    table = np.zeros((layout.padded_items, layout.columns), np.float32)
    table[: layout.items, : embeddings.shape[1]] = embeddings
    if bias is not None:
        table[: layout.items, -1] = bias
    return table.reshape(layout.shape)
