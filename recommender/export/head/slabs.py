"""Slabs: the largest number of each block, from a walk over a table that never holds the numbers of all items.

A slab is a stretch of the table whose numbers for a batch fit into a cache. The table is the left operand of the
product, so it is read as stored in the file: no packed copy of it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import helper

from recommender.export.head.selection import INT64, mask_in_place
from recommender.export.nodes import Array, Nodes


@dataclass(frozen=True, slots=True)
class Pairs:
    """Names of the parts of `excluded`."""

    rows: str  # int64 [nnz]
    items: str  # int64 [nnz]
    any: str  # bool [1]

    @classmethod
    def of(cls, g: Nodes, excluded: str) -> Pairs:
        """Take int64 [nnz, 2] apart."""
        rows, items = (g.op("Gather", excluded, g.constant(np.array(column)), axis=1) for column in (0, 1))
        return cls(rows, items, g.op("Greater", g.op("Shape", excluded, start=0, end=1), g.int64(0)))


@dataclass(frozen=True, slots=True)
class Slabs:
    """A table cut into slabs, and how to multiply one with the batch.

    `table` names it as [slabs, …] of element type `stored`. `product` adds the product of a slab and all rows, which
    counts `items`, int64 [1], times batch numbers of element type `scored`; `lowest` is below every such number.
    """

    table: str
    stored: int
    items: str
    block: int
    product: Callable[[Nodes, str], str]
    scored: int
    lowest: Array

    def maxima(self, g: Nodes, batch: str, pairs: Pairs) -> str:
        """The largest number of each block for each row, [batch, blocks], excluded pairs left out."""
        (maxima,) = g.choose(
            pairs.any,
            lambda body: (self._walk(body, batch, pairs),),
            lambda body: (self._walk(body, batch, None),),
            (self.scored,),
        )
        maxima = g.op("Reshape", maxima, g.op("Concat", g.int64(-1), batch, axis=0))
        return g.op("Transpose", maxima, perm=[1, 0])

    def _walk(self, g: Nodes, batch: str, pairs: Pairs | None) -> str:
        def body(inner: Nodes) -> tuple[str]:
            scores = self.product(inner, slab.name)
            if pairs is None:
                scores = inner.op("Reshape", scores, by_block)
            else:
                first, start, end = (part.name for part in parts)
                own = inner.op("Sub", inner.op("Slice", ordered, start, end), first)
                scores = mask_in_place(inner, scores, own, by_block, self.lowest)
            return (inner.op("ReduceMax", scores, inner.int64(1), keepdims=0),)

        by_block = g.op("Concat", g.int64(-1, self.block), batch, axis=0)
        slab = helper.make_tensor_value_info(g.fresh("slab"), self.stored, [None, None])
        scanned, inputs = [self.table], [slab]
        if pairs is not None:
            parts = [helper.make_tensor_value_info(g.fresh("part"), INT64, [1]) for _ in range(3)]
            ordered, bounds = self._own(g, pairs, batch)
            scanned += bounds
            inputs += parts
        return g.op(
            "Scan", *scanned, num_scan_inputs=len(inputs), body=g.subgraph("slab", body, (self.scored,), inputs)
        )

    def _own(self, g: Nodes, pairs: Pairs, batch: str) -> tuple[str, list[str]]:
        """Excluded pairs in the order of the slabs, so that each slab looks at its own and no others.

        Returns the pairs' places in the scores [items of all slabs, batch] counted as one row, int64 [nnz], and for
        each slab, int64 [slabs, 1], the first place of its scores, and where in that list its own places start and end.
        """
        number, slabs = g.op("Shape", pairs.items), g.op("Shape", self.table, start=0, end=1)
        items, order = g.ops("TopK", 2, pairs.items, number, axis=0, largest=0)
        places = g.op("Add", g.op("Mul", items, batch), g.op("Gather", pairs.rows, order, axis=0))
        none, ones = g.op("Expand", g.int64(0), slabs), g.op("Expand", g.int64(1), number)
        counts = g.op("ScatterElements", none, g.op("Div", items, self.items), ones, axis=0, reduction="add")
        zero, one = (g.constant(np.array(number, np.int64)) for number in (0, 1))
        ends = g.op("CumSum", counts, zero)
        firsts = g.op("Mul", g.op("Range", zero, g.op("Squeeze", slabs), one), g.op("Mul", self.items, batch))
        bounds = [g.op("Unsqueeze", each, g.int64(1)) for each in (firsts, g.op("Sub", ends, counts), ends)]
        return places, bounds


def view(g: Nodes, table: str, users: str, *shape: int) -> str:
    """A constant table in another shape, in place.

    The shape must look unknown until the batch is there: ONNX Runtime folds a Reshape of constants at load, and that
    would be one more copy of the table.
    """
    batch = batch_of(g, users)
    nothing = g.op("Sub", batch, batch)
    return g.op("Reshape", table, g.op("Add", g.int64(*shape), nothing))


def batch_of(g: Nodes, users: str) -> str:
    """The number of rows, int64 [1]; computed where it is used, so that other paths do not pay for it."""
    return g.op("Shape", users, start=0, end=1)


def each_row(g: Nodes, rows: str, row: npt.NDArray[np.int64]) -> str:
    """The same row for every row of the batch: int64 [batch, len(row)]."""
    width = g.op("Concat", batch_of(g, rows), g.int64(len(row)), axis=0)
    return g.op("Expand", g.constant(row.astype(np.int64).reshape(1, -1)), width)
