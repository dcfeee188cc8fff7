"""Blocks: exact top-K of the whole catalogue, which looks only at the items of its best blocks.

Selecting K of N scores costs as much as computing them, so the largest score of each block of items is taken first,
and then only a few blocks are looked at:

    the K best items lie in the K blocks with the largest maxima.

Proof: order items by (score down, id up) and blocks by (maximum down, number up). If item x lies in a block b that
was not chosen, each of the K chosen blocks holds an item better than x: one with a larger score, or with the
same score and, its block coming before b, a lower id. So x is not among the K best.

The chosen blocks are put in ascending order and the K best of their items selected; TopK prefers the earlier position
among equals, which is the lower id. The items after the last full block are always among the chosen, last.

There are two ways to the maxima:

- `all_scores` multiplies with the whole table at once, which ONNX Runtime has packed for this at load (a second
  copy in memory, not in the file; `session.disable_prepacking` saves it and costs time); `from_scores` continues.
- `from_slabs` walks over the table in slabs, the table on the left, read as stored in the file, and keeps of each
  slab the maxima only, where a score matrix would cost more to write than to compute. The items of the chosen
  blocks are scored once more; such a score may differ in its last bits from the one that chose the block,
  far inside the card's `score_tolerance`.

Excluded pairs become `MASKED` before a block's maximum is taken. `users` names float32 [batch, columns], finite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recommender.export.head.bounds import Bounds, bounded_rows, no_bounds
from recommender.export.head.selection import FLOAT, LOWEST, flat_places, mask, mask_in_place, places, search, select
from recommender.export.head.slabs import Pairs, Slabs, batch_of, each_row, view
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout

# In a smaller catalogue selecting from everything is fastest.
_LEAST_ITEMS = 4_000


def all_scores(g: Nodes, users: str, pairs: str, layout: Layout) -> str:
    """Scores of every item for these users, masked at these pairs."""
    scores = product(g, users)
    return mask_in_place(g, scores, flat_places(g, pairs, g.int64(layout.rows)), g.int64(-1, layout.rows))


def product(g: Nodes, users: str) -> str:
    """Scores of every item and of the table's padding."""
    return g.op("Gemm", users, TABLE, transB=1)


def from_scores(g: Nodes, scores: str, users: str, layout: Layout, bounds: Bounds | None = None) -> tuple[str, ...]:
    """Top-K, all scores being there; with `bounds` those of the blocks too."""
    if layout.plain or layout.items < _LEAST_ITEMS:
        return (*from_all(g, scores, layout), *(() if bounds is None else (no_bounds(g),)))
    return _from_blocks(g, scores, users, layout, bounds)


def from_all(g: Nodes, scores: str, layout: Layout) -> tuple[str, str]:
    """Top-K from all scores."""
    best, ids = g.ops("TopK", 2, _first(g, scores, layout.items, of=layout.rows), "k", axis=1)
    return ids, best


def _from_blocks(g: Nodes, scores: str, users: str, layout: Layout, bounds: Bounds | None) -> tuple[str, ...]:
    """Top-K from the blocks with the largest maxima, all scores being there."""
    by_block = g.op("Reshape", scores, g.int64(0, -1, layout.block))
    maxima = g.op("ReduceMax", by_block, g.int64(2), keepdims=1)
    maxima = _first(g, maxima, layout.full_blocks, of=layout.rows // layout.block)

    def ranked(inner: Nodes) -> tuple[str, str]:
        blocks = _choose_blocks(inner, maxima, layout)
        chosen = inner.op("Reshape", inner.op("GatherND", by_block, blocks, batch_dims=1), inner.int64(0, -1))
        if layout.tail:
            start, end = layout.items - layout.tail, layout.items
            tail = inner.op("Slice", scores, inner.int64(start), inner.int64(end), inner.int64(1))
            chosen = inner.op("Concat", chosen, tail, axis=1)
        return _select(inner, blocks, chosen, users, layout)

    return _with_bounds(g, users, maxima, ranked, bounds)


def _with_bounds(
    g: Nodes, users: str, maxima: str, ranked: Callable[[Nodes], tuple[str, str]], bounds: Bounds | None
) -> tuple[str, ...]:
    """What `ranked` gives and, with `bounds`, the `maxima` [batch, blocks, 1] of the rows that are bounded."""
    if bounds is None:
        return ranked(g)
    return *bounds.rank(g, users, ranked), g.op("Squeeze", bounded_rows(g, maxima), g.int64(2))


def from_slabs(g: Nodes, users: str, excluded: str, layout: Layout, bounds: Bounds | None = None) -> tuple[str, ...]:
    """Top-K from the blocks with the largest maxima, found slab by slab; with `bounds` those of the blocks too."""
    pairs, across = Pairs.of(g, excluded), g.op("Transpose", users, perm=[1, 0])
    size = layout.blocks * layout.block
    slabs = Slabs(
        table=view(g, TABLE, users, layout.slabs, size, layout.columns),
        stored=FLOAT,
        items=g.int64(size),
        block=layout.block,
        product=lambda inner, slab: inner.op("MatMul", slab, across),
        scored=FLOAT,
        lowest=LOWEST,
    )
    maxima = _first(g, slabs.maxima(g, batch_of(g, users), pairs), layout.full_blocks, of=layout.slabs * layout.blocks)
    maxima = g.op("Unsqueeze", maxima, g.int64(2))

    def ranked(inner: Nodes) -> tuple[str, str]:
        return _score_blocks(inner, _choose_blocks(inner, maxima, layout), pairs, users, layout)

    return _with_bounds(g, users, maxima, ranked, bounds)


def _score_blocks(g: Nodes, blocks: str, pairs: Pairs, users: str, layout: Layout) -> tuple[str, str]:
    """Top-K of the items in these blocks, int64 [batch, m, 1] ascending, and the tail; scored by a gathered product."""
    vectors = g.op("Gather", view(g, TABLE, users, -1, layout.block * layout.columns), blocks, axis=0)
    scores = gathered_product(g, g.op("Reshape", vectors, g.int64(0, -1, layout.columns)), users)
    if layout.tail:
        tail = g.constant(np.arange(layout.items - layout.tail, layout.items, dtype=np.int64))
        more = g.op("Gemm", users, g.op("Gather", TABLE, tail, axis=0), transB=1)
        scores = g.op("Concat", scores, more, axis=1)

    def masked(body: Nodes) -> tuple[str]:
        known = body.op("Squeeze", blocks, body.int64(2))
        if layout.tail:
            known = body.op("Concat", known, each_row(body, users, np.array([layout.full_blocks])), axis=1)
        size = body.int64(layout.block)
        slot, found = search(body, known, pairs.rows, body.op("Div", pairs.items, size))
        place = body.op("Add", body.op("Mul", slot, size), body.op("Mod", pairs.items, size))
        return (mask(body, scores, places(body, pairs.rows, place), keep=found),)

    (scores,) = g.choose(pairs.any, masked, lambda _: (scores,), (FLOAT,))
    return _select(g, blocks, scores, users, layout)


def _choose_blocks(g: Nodes, maxima: str, layout: Layout) -> str:
    """The `k` blocks with the largest `maxima` [batch, blocks, 1], or all there are: int64 [batch, m, 1], ascending."""
    number = g.op("Min", "k", g.int64(layout.full_blocks))
    _, chosen = g.ops("TopK", 2, maxima, number, axis=1, sorted=0)
    return g.ops("TopK", 2, chosen, number, axis=1, largest=0)[0]


def _select(g: Nodes, blocks: str, scores: str, users: str, layout: Layout) -> tuple[str, str]:
    """Top-K of the `scores` of the items in these blocks [batch, m, 1], and of the tail behind them."""
    first = g.op("Mul", blocks, g.int64(layout.block))
    within = g.constant(np.arange(layout.block, dtype=np.int64).reshape(1, 1, -1))
    ids = g.op("Reshape", g.op("Add", first, within), g.int64(0, -1))
    if layout.tail:
        tail = np.arange(layout.items - layout.tail, layout.items)
        ids = g.op("Concat", ids, each_row(g, users, tail), axis=1)
    return select(g, ids, scores, "k")


def _first(g: Nodes, rows: str, width: int, *, of: int) -> str:
    """The first `width` of the `of` columns."""
    return rows if width == of else g.op("Slice", rows, g.int64(0), g.int64(width), g.int64(1))


def gathered_product(g: Nodes, vectors: str, users: str) -> str:
    """Scores [batch, m] of each row's own item vectors [batch, m, columns]."""
    last = g.int64(-1)
    return g.op("Squeeze", g.op("MatMul", vectors, g.op("Unsqueeze", users, last)), last)
