"""The head: user vectors [batch, d] in, exact top-K of the whole item table out, as ONNX nodes.

Selecting K of N scores costs as much as computing them, and a [batch, N] score matrix costs more to write
than to compute. So the head never holds that matrix: it walks over the table in slabs, multiplies a slab
with all user vectors (the table on the left, so that it is read as it stands in the file, once, by everybody),
and keeps only the largest score of each block of items. Then, for each row:

    the K best items lie in the K blocks with the largest maxima.

Proof: order items by (score down, id up) and blocks by (maximum down, number up). If item x lies in a block b that
was not chosen, each of the K chosen blocks holds an item better than x: one with a larger score, or with the
same score and, its block coming before b, a lower id. So x is not among the K best.

The chosen blocks are put in ascending order, their items scored again by a gathered product, and the K best of these
selected; TopK prefers the earlier position among equals, which is the lower id. The items after the last full
block are always among the chosen, last. What is exact: ids and order follow the returned scores; a score computed
twice may differ in its last bit, far inside the card's `score_tolerance`.

- `excluded` pairs become -inf inside their slab before the block's maximum is taken, and once more among the chosen.
- `candidates` are scored by a gathered product and nothing else is read.
- When K is not small against the number of blocks, all scores are computed and selected from.
- A user vector that is NaN, infinite or so large that a score would overflow gets no recommendation at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from recommender.export.nodes import Nodes
from recommender.export.table import Layout

TABLE = "item_table"
INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
# Above one chosen block in this many, computing everything is faster than gathering the chosen.
_BLOCKS_PER_K = 8


@dataclass(frozen=True, slots=True)
class _Values:
    """Names of the values that every path reads."""

    users: str  # float32 [batch, columns], finite
    users_left: str  # float32 [columns, batch]
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
        users_left=g.op("Transpose", users, perm=[1, 0]),
        k="k",
        batch=batch,
        excluded_rows=g.op("Reshape", rows, flat),
        excluded_items=g.op("Reshape", items, flat),
        any_excluded=g.op("Greater", g.op("Shape", "excluded", start=0, end=1), g.int64(0)),
    )
    few_blocks = layout.full_blocks // _BLOCKS_PER_K

    def whole_catalogue(inner: Nodes) -> tuple[str, ...]:
        if few_blocks < 1:
            return _from_all(inner, values, layout)
        if max_k <= few_blocks:
            return _from_blocks(inner, values, layout)
        return inner.choose(
            inner.op("LessOrEqual", "k", inner.int64(few_blocks)),
            lambda body: _from_blocks(body, values, layout),
            lambda body: _from_all(body, values, layout),
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


def _from_blocks(g: Nodes, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K by block maxima; `k` is at most the number of full blocks."""
    (maxima,) = g.choose(
        values.any_excluded,
        lambda inner: (_block_maxima(inner, values, layout, mask=True),),
        lambda inner: (_block_maxima(inner, values, layout, mask=False),),
        (FLOAT,),
    )
    _, chosen = g.ops("TopK", 2, maxima, values.k, axis=1, sorted=0)
    blocks, _ = g.ops("TopK", 2, chosen, values.k, axis=1, largest=0)
    last = g.int64(-1)
    place = [g.op("Unsqueeze", g.op(kind, blocks, g.int64(layout.blocks)), last) for kind in ("Div", "Mod")]
    vectors = g.op("GatherND", TABLE, g.op("Concat", *place, axis=2))  # [batch, k, block, columns]
    vectors = g.op("Reshape", vectors, g.int64(0, -1, layout.columns))
    scores = g.op("Squeeze", g.op("MatMul", vectors, g.op("Unsqueeze", values.users, last)), last)
    first = g.op("Unsqueeze", g.op("Mul", blocks, g.int64(layout.block)), last)
    within = g.constant(np.arange(layout.block, dtype=np.int64).reshape(1, 1, -1))
    ids = g.op("Reshape", g.op("Add", first, within), g.int64(0, -1))
    tail = np.arange(layout.full_blocks * layout.block, layout.items, dtype=np.int64)
    if tail.size:
        where = g.constant(np.stack(np.unravel_index(tail, layout.shape[:3]), axis=1).astype(np.int64))
        scores = g.op("Concat", scores, _product(g, values.users, g.op("GatherND", TABLE, where)), axis=1)
        ids = g.op("Concat", ids, _each_row(g, values, tail), axis=1)

    def masked(inner: Nodes) -> tuple[str]:
        known = blocks
        if tail.size:
            known = inner.op("Concat", blocks, _each_row(inner, values, np.array([layout.full_blocks])), axis=1)
        block = inner.op("Div", values.excluded_items, inner.int64(layout.block))
        slot, found = _search(inner, known, values.excluded_rows, block)
        place = inner.op("Mul", slot, inner.int64(layout.block))
        place = inner.op("Add", place, inner.op("Mod", values.excluded_items, inner.int64(layout.block)))
        return (_mask(inner, scores, (values.excluded_rows, place), keep=found),)

    (scores,) = g.choose(values.any_excluded, masked, lambda _: (scores,), (FLOAT,))
    return _select(g, ids, scores, values.k)


def _block_maxima(g: Nodes, values: _Values, layout: Layout, *, mask: bool) -> str:
    """The largest score of each full block, float32 [batch, full_blocks], slab by slab."""

    def body(inner: Nodes) -> tuple[str]:
        scores = inner.op("MatMul", slab.name, values.users_left)  # [blocks, block, batch]
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

    slab = helper.make_tensor_value_info(g.fresh("slab"), FLOAT, layout.shape[1:])
    start = helper.make_tensor_value_info(g.fresh("start"), INT64, [])
    scanned, inputs = [TABLE], [slab]
    if mask:
        scanned.append(g.constant(np.arange(layout.slabs, dtype=np.int64) * (layout.blocks * layout.block)))
        inputs.append(start)
    maxima = g.op("Scan", *scanned, num_scan_inputs=len(inputs), body=g.subgraph("slab", body, (FLOAT,), inputs))
    maxima = g.op("Reshape", maxima, g.op("Concat", g.int64(-1), values.batch, axis=0))
    if layout.slabs * layout.blocks > layout.full_blocks:
        maxima = g.op("Slice", maxima, g.int64(0), g.int64(layout.full_blocks), g.int64(0))
    return g.op("Transpose", maxima, perm=[1, 0])


def _from_all(g: Nodes, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K of all scores."""
    scores = g.op("MatMul", TABLE, values.users_left)
    scores = g.op("Reshape", scores, g.op("Concat", g.int64(-1), values.batch, axis=0))
    if layout.padded_items > layout.items:
        scores = g.op("Slice", scores, g.int64(0), g.int64(layout.items), g.int64(0))
    scores = _mask(g, g.op("Transpose", scores, perm=[1, 0]), (values.excluded_rows, values.excluded_items))
    best, ids = g.ops("TopK", 2, scores, values.k, axis=1)
    return ids, best


def _from_candidates(g: Nodes, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K of each row's own candidates, which are ascending; the tail is -inf."""
    ids = "candidates"
    last = g.int64(-1)
    vectors = g.op("GatherND", TABLE, places(g, ids, layout))  # [batch, c, columns]
    scores = g.op("Squeeze", g.op("MatMul", vectors, g.op("Unsqueeze", values.users, last)), last)
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


def places(g: Nodes, ids: str, layout: Layout) -> str:
    """Where these items stand in the table: ids int64 [...] → int64 [..., 3], ready for GatherND."""
    last = g.int64(-1)
    block = g.op("Div", ids, g.int64(layout.block))
    parts = (
        g.op("Div", block, g.int64(layout.blocks)),
        g.op("Mod", block, g.int64(layout.blocks)),
        g.op("Mod", ids, g.int64(layout.block)),
    )
    return g.op("Concat", *(g.op("Unsqueeze", part, last) for part in parts), axis=-1)


def _select(g: Nodes, ids: str, scores: str, k: str) -> tuple[str, str]:
    """The k best of `scores` with their `ids`, both [batch, m]."""
    best, position = g.ops("TopK", 2, scores, k, axis=1)
    return g.op("GatherElements", ids, position, axis=1), best


def _product(g: Nodes, users: str, vectors: str) -> str:
    """Scores [batch, m] of item vectors [m, columns]."""
    return g.op("MatMul", users, g.op("Transpose", vectors, perm=[1, 0]))


def _each_row(g: Nodes, values: _Values, row: np.ndarray) -> str:
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
