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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import helper

from recommender.export.coarse import Codes, add_coarse_scores, choose_blocks, most_wanted, proven
from recommender.export.nodes import Nodes
from recommender.export.selection import (
    FLOAT,
    INT64,
    flat_places,
    mask,
    mask_in_place,
    places,
    real_candidates,
    search,
    select,
    select_filled,
)
from recommender.export.table import Layout

Plan: TypeAlias = Callable[[Nodes], tuple[str, ...]]

TABLE = "item_table"
# Above one chosen block in this many, selecting from everything is faster than from the chosen.
_BLOCKS_PER_K = 8
# Scoring the items of a block again costs more than to select from it: above one in this many, slabs are slower.
_SLAB_BLOCKS_PER_K = 64
# With fewer scores than this in a batch, selecting from everything is fastest.
_ALWAYS_BLOCKS = 40_000
# From this many rows on, slabs are faster than one product.
_SLAB_ROWS = 40
# From this many rows on, the exact looks that coarse scores ask for cost more than they save.
_COARSE_ROWS = 16


@dataclass(frozen=True, slots=True)
class _Values:
    """Names of the values that every path reads."""

    users: str  # float32 [batch, columns], finite
    batch: str  # int64 [1]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Names of the parts of `excluded`."""

    rows: str  # int64 [nnz]
    items: str  # int64 [nnz]
    any: str  # bool [1]

    @classmethod
    def of(cls, g: Nodes) -> _Pairs:
        """Take the input apart."""
        rows, items = (g.op("Gather", "excluded", g.constant(np.array(column)), axis=1) for column in (0, 1))
        return cls(rows, items, g.op("Greater", g.op("Shape", "excluded", start=0, end=1), g.int64(0)))


def add_head(
    g: Nodes, users: str, layout: Layout, *, largest: float, bias: bool, codes: Codes | None = None
) -> dict[str, str]:
    """Add the head to `g`; returns the names of its values by output: `recommendations`, `scores`, maybe `fallbacks`.

    `users` is float32 [batch, d]; the graph has the inputs `k`, `excluded`, `candidates` and
    `candidates_length`, and the initializer `item_table` in this layout. `largest` is the largest absolute value in
    the table; `bias` says that its last column is a bias. With `codes`, small batches start from coarse scores, and
    `fallbacks` int64 [batch] is 1 for each row whose coarse scores did not prove its ranking.
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
    values = _Values(users, batch)
    whole = g.op("Equal", g.op("Shape", "candidates", start=1, end=2), g.int64(0))
    rank = _plan(g, values, layout, whole) if codes is None else _coarse_plan(g, values, layout, whole, codes)
    ids, scores, *told = g.choose(
        whole,
        rank,
        lambda inner: (
            *_from_candidates(inner, values, layout),
            *(() if codes is None else (_no_fallbacks(inner, values),)),
        ),
        (INT64, FLOAT) if codes is None else (INT64, FLOAT, INT64),
    )
    lowest = g.float32(-np.inf)
    scores = g.op("Where", sound, scores, lowest)
    ids = g.op("Where", g.op("Equal", scores, lowest), g.int64(-1), ids)
    return dict(zip(("recommendations", "scores", "fallbacks"), (ids, scores, *told), strict=False))


def coarse_pays(layout: Layout) -> bool:
    """Whether coarse scores can choose among the blocks of this catalogue at all."""
    return most_wanted(layout.full_blocks // _BLOCKS_PER_K) >= 1


def _plan(g: Nodes, values: _Values, layout: Layout, whole: str) -> Plan:
    """How to rank the whole catalogue in float32."""
    few_blocks = layout.full_blocks // _BLOCKS_PER_K
    few = g.op("LessOrEqual", "k", g.int64(few_blocks))
    at_once = whole
    if layout.slabs > 1:
        many = g.op("Greater", "k", g.int64(layout.full_blocks // _SLAB_BLOCKS_PER_K))
        at_once = g.op("And", whole, g.op("Or", g.op("Less", values.batch, g.int64(_SLAB_ROWS)), many))
    by_block = few
    if layout.items < _ALWAYS_BLOCKS:
        enough = g.op("GreaterOrEqual", values.batch, g.int64(-(-_ALWAYS_BLOCKS // layout.items)))
        by_block = g.op("And", few, enough)
    all_scores = _all_scores(g, values, at_once, layout)

    def from_scores(inner: Nodes) -> tuple[str, ...]:
        if few_blocks < 1:
            return _from_all(inner, all_scores, layout)
        return inner.choose(
            by_block,
            lambda body: _from_blocks(body, all_scores, values, layout),
            lambda body: _from_all(body, all_scores, layout),
            (INT64, FLOAT),
        )

    if layout.slabs == 1:
        return from_scores
    return lambda inner: inner.choose(
        at_once, from_scores, lambda body: _from_slabs(body, values, layout), (INT64, FLOAT)
    )


def _coarse_plan(g: Nodes, values: _Values, layout: Layout, whole: str, codes: Codes) -> Plan:
    """How to rank the whole catalogue with coarse scores for small batches, and slabs for the others."""
    few_blocks = layout.full_blocks // _BLOCKS_PER_K
    few = g.op("LessOrEqual", "k", g.int64(layout.full_blocks // _SLAB_BLOCKS_PER_K))
    able = g.op("LessOrEqual", "k", g.int64(most_wanted(few_blocks)))
    small = g.op("And", able, g.op("Less", values.batch, g.int64(_COARSE_ROWS)))
    users, pairs = _where(g, g.op("And", whole, small), values.users, "excluded")
    sums = add_coarse_scores(g, users, pairs, codes, layout)

    def exact(inner: Nodes) -> tuple[str, ...]:
        return inner.choose(
            few,
            lambda body: _from_slabs(body, values, layout),
            lambda body: _from_all(body, _scores(body, values.users, "excluded", layout), layout),
            (INT64, FLOAT),
        )

    def coarse(inner: Nodes) -> tuple[str, ...]:
        choice = choose_blocks(inner, values.users, sums, codes, layout)
        ids, scores = _score_blocks(inner, choice.blocks, _Pairs.of(inner), values, layout)
        proof = proven(inner, scores, choice.edge)
        failed = inner.op("Cast", inner.op("Not", proof), to=INT64)
        ids, scores = inner.choose(
            inner.op("Equal", inner.op("ReduceMax", failed, keepdims=0), inner.constant(np.array(0, np.int64))),
            lambda _: (ids, scores),
            lambda body: _from_slabs(body, values, layout),
            (INT64, FLOAT),
        )
        return ids, scores, inner.op("Squeeze", failed, inner.int64(1))

    return lambda inner: inner.choose(
        small, coarse, lambda body: (*exact(body), _no_fallbacks(body, values)), (INT64, FLOAT, INT64)
    )


def _no_fallbacks(g: Nodes, values: _Values) -> str:
    return g.op("Expand", g.int64(0), values.batch)


def _all_scores(g: Nodes, values: _Values, wanted: str, layout: Layout) -> str:
    """Scores of every item, masked: float32 [batch, rows of the table]; where they are not wanted, [0, rows].

    Stands outside of every If: ONNX Runtime packs a table only for a product at the top level, and masks in place only
    what was made beside it.
    """
    if layout.slabs == 1:  # One slab's scores cost less than to ask whether they are wanted.
        return _scores(g, values.users, "excluded", layout)
    users, pairs = _where(g, wanted, values.users, "excluded")
    return _scores(g, users, pairs, layout)


def _where(g: Nodes, wanted: str, *rows: str) -> list[str]:
    """These rows where they are wanted, otherwise none."""
    zero, last = g.int64(0), g.int64(np.iinfo(np.int64).max)
    end = g.op("Where", wanted, last, zero)
    return [g.op("Slice", each, zero, end, zero) for each in rows]


def _scores(g: Nodes, users: str, pairs: str, layout: Layout) -> str:
    """Scores of every item for these users, masked at these pairs."""
    scores = g.op("Gemm", users, TABLE, transB=1)
    return mask_in_place(g, scores, flat_places(g, pairs, g.int64(layout.rows)), g.int64(-1, layout.rows))


def _from_all(g: Nodes, scores: str, layout: Layout) -> tuple[str, str]:
    """Top-K from all scores."""
    best, ids = g.ops("TopK", 2, _first(g, scores, layout.items, of=layout.rows), "k", axis=1)
    return ids, best


def _from_blocks(g: Nodes, scores: str, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K from the blocks with the largest maxima, all scores being there."""
    by_block = g.op("Reshape", scores, g.int64(0, -1, layout.block))
    maxima = g.op("ReduceMax", by_block, g.int64(2), keepdims=0)
    blocks = _choose_blocks(g, _first(g, maxima, layout.full_blocks, of=layout.rows // layout.block))
    place = g.op("Unsqueeze", blocks, g.int64(-1))
    chosen = g.op("Reshape", g.op("GatherND", by_block, place, batch_dims=1), g.int64(0, -1))
    if layout.tail:
        start, end = layout.items - layout.tail, layout.items
        tail = g.op("Slice", scores, g.int64(start), g.int64(end), g.int64(1))
        chosen = g.op("Concat", chosen, tail, axis=1)
    return select(g, _chosen_ids(g, blocks, values, layout), chosen, "k")


def _from_slabs(g: Nodes, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K from the blocks with the largest maxima, found slab by slab."""
    pairs = _Pairs.of(g)
    (maxima,) = g.choose(
        pairs.any,
        lambda body: (_slab_maxima(body, values, layout, pairs),),
        lambda body: (_slab_maxima(body, values, layout, None),),
        (FLOAT,),
    )
    return _score_blocks(g, _choose_blocks(g, maxima), pairs, values, layout)


def _score_blocks(g: Nodes, blocks: str, pairs: _Pairs, values: _Values, layout: Layout) -> tuple[str, str]:
    """Top-K of the items in these blocks, int64 [batch, m] ascending, and of the tail; scored by a gathered product."""
    vectors = g.op("Gather", _view(g, values, -1, layout.block * layout.columns), blocks, axis=0)
    scores = _gathered_product(g, g.op("Reshape", vectors, g.int64(0, -1, layout.columns)), values.users)
    if layout.tail:
        tail = g.constant(np.arange(layout.items - layout.tail, layout.items, dtype=np.int64))
        more = g.op("Gemm", values.users, g.op("Gather", TABLE, tail, axis=0), transB=1)
        scores = g.op("Concat", scores, more, axis=1)

    def masked(body: Nodes) -> tuple[str]:
        known = blocks
        if layout.tail:
            known = body.op("Concat", blocks, _each_row(body, values, np.array([layout.full_blocks])), axis=1)
        size = body.int64(layout.block)
        slot, found = search(body, known, pairs.rows, body.op("Div", pairs.items, size))
        place = body.op("Add", body.op("Mul", slot, size), body.op("Mod", pairs.items, size))
        return (mask(body, scores, places(body, pairs.rows, place), keep=found),)

    (scores,) = g.choose(pairs.any, masked, lambda _: (scores,), (FLOAT,))
    return select(g, _chosen_ids(g, blocks, values, layout), scores, "k")


def _slab_maxima(g: Nodes, values: _Values, layout: Layout, pairs: _Pairs | None) -> str:
    """The largest score of each full block, float32 [batch, full_blocks], slab by slab."""

    def body(inner: Nodes) -> tuple[str]:
        scores = inner.op("MatMul", slab.name, users)  # [blocks, block, batch]
        if pairs is not None:
            local = inner.op("Sub", pairs.items, start.name)
            inside = inner.op(
                "And",
                inner.op("GreaterOrEqual", local, inner.int64(0)),
                inner.op("Less", local, inner.int64(layout.blocks * layout.block)),
            )
            own = inner.op(
                "Compress", inner.op("Add", inner.op("Mul", local, values.batch), pairs.rows), inside, axis=0
            )
            scores = mask_in_place(inner, scores, own, inner.int64(layout.blocks, layout.block, -1))
        return (inner.op("ReduceMax", scores, inner.int64(1), keepdims=0),)

    users = g.op("Transpose", values.users, perm=[1, 0])
    shape = (layout.blocks, layout.block, layout.columns)
    slab = helper.make_tensor_value_info(g.fresh("slab"), FLOAT, shape)
    start = helper.make_tensor_value_info(g.fresh("start"), INT64, [])
    scanned, inputs = [_view(g, values, layout.slabs, *shape)], [slab]
    if pairs is not None:
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


def _choose_blocks(g: Nodes, maxima: str) -> str:
    """The `k` blocks with the largest maxima, in ascending order: int64 [batch, k]."""
    _, chosen = g.ops("TopK", 2, maxima, "k", axis=1, sorted=0)
    return g.ops("TopK", 2, chosen, "k", axis=1, largest=0)[0]


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
    """Top-K of each row's own candidates, which are ascending."""
    ids = "candidates"
    scores = _gathered_product(g, g.op("Gather", TABLE, ids, axis=0), values.users)
    real = real_candidates(g)
    scores = g.op("Where", real, scores, g.float32(-np.inf))

    def masked(inner: Nodes) -> tuple[str]:
        # Padding breaks the ascending order, so it is read as larger than any id.
        known = inner.op("Where", real, ids, inner.int64(layout.items))
        place, found = search(inner, known, pairs.rows, pairs.items)
        return (mask(inner, scores, places(inner, pairs.rows, place), keep=found),)

    pairs = _Pairs.of(g)
    (scores,) = g.choose(pairs.any, masked, lambda _: (scores,), (FLOAT,))
    return select_filled(g, ids, scores, values.batch)


def _gathered_product(g: Nodes, vectors: str, users: str) -> str:
    """Scores [batch, m] of each row's own item vectors [batch, m, columns]."""
    last = g.int64(-1)
    return g.op("Squeeze", g.op("MatMul", vectors, g.op("Unsqueeze", users, last)), last)


def _each_row(g: Nodes, values: _Values, row: npt.NDArray[np.int64]) -> str:
    """The same row for every row of the batch: int64 [batch, len(row)]."""
    width = g.op("Concat", values.batch, g.int64(len(row)), axis=0)
    return g.op("Expand", g.constant(row.astype(np.int64).reshape(1, -1)), width)
