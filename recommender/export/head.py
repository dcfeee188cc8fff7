"""The head: user vectors [batch, d] in, exact top-K of the whole item table out, as ONNX nodes.

Selecting K of N scores costs as much as computing them, so the head first takes the largest score of each block of
items, and then looks only where it must:

    the K best items lie in the K blocks with the largest maxima.

Proof: order items by (score down, id up) and blocks by (maximum down, number up). If item x lies in a block b that
was not chosen, each of the K chosen blocks holds an item better than x: one with a larger score, or with the
same score and, its block coming before b, a lower id. So x is not among the K best.

The chosen blocks are put in ascending order and the K best of their items selected; TopK prefers the earlier position
among equals, which is the lower id. The items after the last full block are always among the chosen, last.

There are two ways to the maxima, and the batch decides:

- A small batch multiplies with the whole table at once, which ONNX Runtime has packed for this at load (a second
  copy in memory, not in the file; `session.disable_prepacking` saves it and costs time).
- A large batch has a score matrix that costs more to write than to compute. So it walks over the table in slabs, the
  table on the left, read as it stands in the file, and keeps of each slab the maxima only. The items of the chosen
  blocks are scored once more; such a score may differ in its last bits from the one that chose the block,
  far inside the card's `score_tolerance`.

- `excluded` pairs become -inf before a block's maximum is taken.
- `candidates` are scored by a gathered product and nothing else is read.
- When K is not small against the number of blocks, all scores are computed and selected from.
- A user vector that is NaN, infinite or so large that a score would overflow gets no recommendation at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from recommender.export.nodes import Nodes
from recommender.export.table import Layout

TABLE = "item_table"
INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
# Above one chosen block in this many, selecting from everything is faster than from the chosen.
_BLOCKS_PER_K = 8
# From this many rows on, slabs are faster than one product.
_SLAB_ROWS = 32


@dataclass(frozen=True, slots=True)
class _Values:
    """Names of the values that every path reads."""

    users: str  # float32 [batch, columns], finite
    k: str  # int64 [1]
    batch: str  # int64 [1]
    excluded_rows: str  # int64 [nnz]
    excluded_items: str  # int64 [nnz]
    any_excluded: str  # bool [1]


def add_head(g: Nodes, users: str, layout: Layout, *, largest: float, bias: bool, max_k: int) -> tuple[str, str]:
    """Add the head to `g` and return the names of `recommendations` and `scores`.

    `users` is float32 [batch, d]; the graph has the inputs `k`, `excluded`, `candidates` and
    `candidates_length`, and the initializer `item_table` in this layout. `largest` is the largest absolute value in
    the table; `bias` says that its last column is a bias.
    """
    sound = g.op(
        "LessOrEqual",
        g.op("ReduceL1", users, g.int64(1), keepdims=1),
        g.float32(float(np.finfo(np.float32).max) / 4 / max(largest, 1.0)),
    )
    users = g.op("Where", sound, users, g.float32(0))
    batch = g.op("Shape", users, start=0, end=1)
    if bias:
        one = g.constant(np.ones((1, 1), np.float32))
        column = g.op("Expand", one, g.op("Concat", batch, g.int64(1), axis=0))
        users = g.op("Concat", users, column, axis=1)
    rows, items = g.ops("Split", 2, "excluded", axis=1, num_outputs=2)
    flat = g.int64(-1)
    values = _Values(
        users=users,
        k="k",
        batch=batch,
        excluded_rows=g.op("Reshape", rows, flat),
        excluded_items=g.op("Reshape", items, flat),
        any_excluded=g.op("Greater", g.op("Shape", "excluded", start=0, end=1), g.int64(0)),
    )

    def whole_catalogue(inner: Nodes) -> tuple[str, ...]:
        if layout.slabs == 1:
            return _at_once(inner, values, layout, max_k)
        return inner.choose(
            inner.op("Less", batch, inner.int64(_SLAB_ROWS)),
            lambda body: _at_once(body, values, layout, max_k),
            lambda body: _by_slabs(body, values, layout, max_k),
            (INT64, FLOAT),
        )

    ids, scores = g.choose(
        g.op("Greater", g.op("Shape", "candidates", start=1, end=2), g.int64(0)),
        lambda inner: _from_candidates(inner, values, layout),
        whole_catalogue,
        (INT64, FLOAT),
    )
    lowest = g.float32(-np.inf)
    scores = g.op("Where", sound, scores, lowest)
    return g.op("Where", g.op("Equal", scores, lowest), g.int64(-1), ids), scores


def _at_once(g: Nodes, values: _Values, layout: Layout, max_k: int) -> tuple[str, ...]:
    """Top-K from all scores, computed by one product."""
    scores = g.op("Gemm", values.users, TABLE, transB=1)  # [batch, rows]
    scores = _mask(g, scores, (values.excluded_rows, values.excluded_items))

    def from_blocks(inner: Nodes) -> tuple[str, str]:
        by_block = inner.op("Reshape", scores, inner.int64(0, -1, layout.block))
        maxima = inner.op("ReduceMax", by_block, inner.int64(2), keepdims=0)
        blocks = _choose_blocks(inner, _first(inner, maxima, layout.full_blocks, of=layout.rows // layout.block), values)
        place = inner.op("Unsqueeze", blocks, inner.int64(-1))
        chosen = inner.op("Reshape", inner.op("GatherND", by_block, place, batch_dims=1), inner.int64(0, -1))
        if layout.tail:
            start, end = layout.items - layout.tail, layout.items
            tail = inner.op("Slice", scores, inner.int64(start), inner.int64(end), inner.int64(1))
            chosen = inner.op("Concat", chosen, tail, axis=1)
        return _select(inner, _chosen_ids(inner, blocks, values, layout), chosen, values.k)

    def from_all(inner: Nodes) -> tuple[str, str]:
        best, ids = inner.ops("TopK", 2, _first(inner, scores, layout.items, of=layout.rows), values.k, axis=1)
        return ids, best

    return _by_number(g, from_blocks, from_all, values, layout, max_k)


def _by_slabs(g: Nodes, values: _Values, layout: Layout, max_k: int) -> tuple[str, ...]:
    """Top-K from the maxima of each slab's blocks."""

    def from_blocks(inner: Nodes) -> tuple[str, str]:
        (maxima,) = inner.choose(
            values.any_excluded,
            lambda body: (_slab_maxima(body, values, layout, mask=True),),
            lambda body: (_slab_maxima(body, values, layout, mask=False),),
            (FLOAT,),
        )
        blocks = _choose_blocks(inner, maxima, values)
        vectors = inner.op("Gather", _view(inner, values, -1, layout.block * layout.columns), blocks, axis=0)
        vectors = inner.op("Reshape", vectors, inner.int64(0, -1, layout.columns))
        scores = _gathered_product(inner, vectors, values.users)
        if layout.tail:
            tail = inner.constant(np.arange(layout.items - layout.tail, layout.items, dtype=np.int64))
            more = inner.op("Gemm", values.users, inner.op("Gather", TABLE, tail, axis=0), transB=1)
            scores = inner.op("Concat", scores, more, axis=1)

        def masked(body: Nodes) -> tuple[str]:
            known = blocks
            if layout.tail:
                known = body.op("Concat", blocks, _each_row(body, values, np.array([layout.full_blocks])), axis=1)
            size = body.int64(layout.block)
            slot, found = _search(body, known, values.excluded_rows, body.op("Div", values.excluded_items, size))
            place = body.op("Add", body.op("Mul", slot, size), body.op("Mod", values.excluded_items, size))
            return (_mask(body, scores, (values.excluded_rows, place), keep=found),)

        (scores,) = inner.choose(values.any_excluded, masked, lambda _: (scores,), (FLOAT,))
        return _select(inner, _chosen_ids(inner, blocks, values, layout), scores, values.k)

    def from_all(inner: Nodes) -> tuple[str, str]:
        scores = inner.op("Gemm", values.users, TABLE, transB=1)
        scores = _mask(inner, scores, (values.excluded_rows, values.excluded_items))
        best, ids = inner.ops("TopK", 2, _first(inner, scores, layout.items, of=layout.rows), values.k, axis=1)
        return ids, best

    return _by_number(g, from_blocks, from_all, values, layout, max_k)


def _by_number(
    g: Nodes,
    from_blocks: Callable[[Nodes], tuple[str, str]],
    from_all: Callable[[Nodes], tuple[str, str]],
    values: _Values,
    layout: Layout,
    max_k: int,
) -> tuple[str, ...]:
    """By blocks while `k` is small against their number."""
    few_blocks = layout.full_blocks // _BLOCKS_PER_K
    if few_blocks < 1:
        return from_all(g)
    if max_k <= few_blocks:
        return from_blocks(g)
    return g.choose(g.op("LessOrEqual", values.k, g.int64(few_blocks)), from_blocks, from_all, (INT64, FLOAT))


def _slab_maxima(g: Nodes, values: _Values, layout: Layout, *, mask: bool) -> str:
    """The largest score of each full block, float32 [batch, full_blocks], slab by slab."""

    def body(inner: Nodes) -> tuple[str]:
        scores = inner.op("MatMul", slab.name, users)  # [blocks, block, batch]
        if mask:
            local = inner.op("Sub", values.excluded_items, start.name)
            inside = inner.op(
                "And",
                inner.op("GreaterOrEqual", local, inner.int64(0)),
                inner.op("Less", local, inner.int64(layout.blocks * layout.block)),
            )
            place = [inner.op(kind, local, inner.int64(layout.block)) for kind in ("Div", "Mod")]
            scores = _mask(inner, scores, (*place, values.excluded_rows), keep=inside)
        return (inner.op("ReduceMax", scores, inner.int64(1), keepdims=0),)

    users = g.op("Transpose", values.users, perm=[1, 0])
    shape = (layout.blocks, layout.block, layout.columns)
    slab = helper.make_tensor_value_info(g.fresh("slab"), FLOAT, shape)
    start = helper.make_tensor_value_info(g.fresh("start"), INT64, [])
    scanned, inputs = [_view(g, values, layout.slabs, *shape)], [slab]
    if mask:
        scanned.append(g.constant(np.arange(layout.slabs, dtype=np.int64) * (layout.blocks * layout.block)))
        inputs.append(start)
    maxima = g.op("Scan", *scanned, num_scan_inputs=len(inputs), body=g.subgraph("slab", body, (FLOAT,), inputs))
    maxima = g.op("Reshape", maxima, g.op("Concat", g.int64(-1), values.batch, axis=0))
    return _first(g, g.op("Transpose", maxima, perm=[1, 0]), layout.full_blocks, of=layout.slabs * layout.blocks)


def _view(g: Nodes, values: _Values, *shape: int) -> str:
    """The table in another shape, in place.

    The shape must look unknown until the batch is there: ONNX Runtime folds a Reshape of constants at load, and that
    would be one more copy of the table.
    """
    nothing = g.op("Sub", values.batch, values.batch)
    return g.op("Reshape", TABLE, g.op("Add", g.int64(*shape), nothing))


def _choose_blocks(g: Nodes, maxima: str, values: _Values) -> str:
    """The `k` blocks with the largest maxima, in ascending order: int64 [batch, k]."""
    _, chosen = g.ops("TopK", 2, maxima, values.k, axis=1, sorted=0)
    return g.ops("TopK", 2, chosen, values.k, axis=1, largest=0)[0]


def _chosen_ids(g: Nodes, blocks: str, values: _Values, layout: Layout) -> str:
    """The items of the chosen blocks and of the tail: int64 [batch, k * block + tail]."""
    first = g.op("Unsqueeze", g.op("Mul", blocks, g.int64(layout.block)), g.int64(-1))
    within = g.constant(np.arange(layout.block, dtype=np.int64).reshape(1, 1, -1))
    ids = g.op("Reshape", g.op("Add", first, within), g.int64(0, -1))
    if layout.tail:
        tail = np.arange(layout.items - layout.tail, layout.items)
        ids = g.op("Concat", ids, _each_row(g, values, tail), axis=1)
    return ids


def _first(g: Nodes, rows: str, width: int, *, of: int) -> str:
    """The first `width` of the `of` columns."""
    return rows if width == of else g.op("Slice", rows, g.int64(0), g.int64(width), g.int64(1))


def _from_candidates(g: Nodes, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K of each row's own candidates, which are ascending; the tail is -inf."""
    ids = "candidates"
    last = g.int64(-1)
    scores = _gathered_product(g, g.op("Gather", TABLE, ids, axis=0), values.users)
    width = g.op("Shape", ids, start=1, end=2)
    zero, one = (g.constant(np.array(number, np.int64)) for number in (0, 1))
    column = g.op("Range", zero, g.op("Squeeze", width), one)
    real = g.op("Less", column, g.op("Unsqueeze", "candidates_length", last))
    scores = g.op("Where", real, scores, g.float32(-np.inf))

    def masked(inner: Nodes) -> tuple[str]:
        # Padding breaks the ascending order, so it is read as larger than any id.
        known = inner.op("Where", real, ids, inner.int64(layout.items))
        place, found = _search(inner, known, values.excluded_rows, values.excluded_items)
        return (_mask(inner, scores, (values.excluded_rows, place), keep=found),)

    (scores,) = g.choose(values.any_excluded, masked, lambda _: (scores,), (FLOAT,))
    filler = g.op("Expand", g.float32(-np.inf), g.op("Concat", values.batch, values.k, axis=0))
    scores = g.op("Concat", scores, filler, axis=1)
    ids = g.op("Concat", ids, g.op("Expand", g.int64(-1), g.op("Shape", filler)), axis=1)
    return _select(g, ids, scores, values.k)


def _select(g: Nodes, ids: str, scores: str, k: str) -> tuple[str, str]:
    """The k best of `scores` with their `ids`, both [batch, m]."""
    best, position = g.ops("TopK", 2, scores, k, axis=1)
    return g.op("GatherElements", ids, position, axis=1), best


def _gathered_product(g: Nodes, vectors: str, users: str) -> str:
    """Scores [batch, m] of each row's own item vectors [batch, m, columns]."""
    last = g.int64(-1)
    return g.op("Squeeze", g.op("MatMul", vectors, g.op("Unsqueeze", users, last)), last)


def _each_row(g: Nodes, values: _Values, row: npt.NDArray[np.int64]) -> str:
    """The same row for every row of the batch: int64 [batch, len(row)]."""
    width = g.op("Concat", values.batch, g.int64(len(row)), axis=0)
    return g.op("Expand", g.constant(row.astype(np.int64).reshape(1, -1)), width)


def _mask(g: Nodes, scores: str, place: tuple[str, ...], keep: str | None = None) -> str:
    """Put -inf at these places, given as one int64 [nnz] per axis; of those only where `keep` is true."""
    last = g.int64(-1)
    indices = g.op("Concat", *(g.op("Unsqueeze", axis, last) for axis in place), axis=1)
    if keep is not None:
        indices = g.op("Compress", indices, keep, axis=0)
    lowest = g.op("Expand", g.float32(-np.inf), g.op("Shape", indices, start=0, end=1))
    return g.op("ScatterND", scores, indices, lowest)


def _search(g: Nodes, known: str, rows: str, sought: str) -> tuple[str, str]:
    """Binary search in `known` int64 [batch, m], ascending in each row: `sought` [nnz] in `rows` [nnz].

    Returns the column, int64 [nnz], and whether `sought` stands there, bool [nnz].
    """
    last, two = g.int64(-1), g.int64(2)
    width = g.op("Shape", known, start=1, end=2)
    end = g.op("Sub", width, g.int64(1))
    low = g.op("Expand", g.int64(0), g.op("Shape", sought))
    high = g.op("Expand", end, g.op("Shape", sought))
    bits = g.op("Ceil", g.op("Div", g.op("Log", g.op("Cast", width, to=FLOAT)), g.float32(float(np.log(2)))))
    steps = g.op("Squeeze", g.op("Add", g.op("Cast", bits, to=INT64), g.int64(1)))

    def at(inner: Nodes, column: str) -> str:
        pairs = [inner.op("Unsqueeze", part, last) for part in (rows, column)]
        return inner.op("GatherND", known, inner.op("Concat", *pairs, axis=1))

    step = helper.make_tensor_value_info(g.fresh("step"), INT64, [])
    go_on = helper.make_tensor_value_info(g.fresh("go_on"), BOOL, [])
    lows = helper.make_tensor_value_info(g.fresh("low"), INT64, [None])
    highs = helper.make_tensor_value_info(g.fresh("high"), INT64, [None])

    def halve(inner: Nodes) -> tuple[str, ...]:
        middle = inner.op("Div", inner.op("Add", lows.name, highs.name), two)
        right = inner.op("Less", at(inner, middle), sought)
        upper = inner.op("Min", inner.op("Add", middle, inner.int64(1)), end)
        return (
            go_on.name,
            inner.op("Where", right, upper, lows.name),
            inner.op("Where", right, highs.name, middle),
        )

    body = g.subgraph("halve", halve, (BOOL, INT64, INT64), (step, go_on, lows, highs))
    column, _ = g.ops("Loop", 2, steps, "", low, high, body=body)
    return column, g.op("Equal", at(g, column), sought)
