"""The head: user vectors [batch, d] in, exact top-K of the whole item table out, as ONNX nodes.

How the best items of the whole catalogue are found is told in `blocks.py` (exact scores) and `coarse.py` (8 bits that
prove what they leave out). Which of these ways a batch takes is decided here, mostly while it runs:

- Where the file has coarse scores, batches of the sizes that `coarse_rows` names start from them.
- Without them a small batch multiplies with the whole table at once.
- A large batch has a score matrix that costs more to write than to compute, so it walks over the table in slabs.
- Rows in `bounded` are not ranked: the bounds of their blocks are given.
- `candidates` are scored by a gathered product and nothing else is read.
- When K is not small against the number of blocks, all scores are computed and selected from.
- Where one product is quick, asking what a batch restricts costs more than selecting from it. So a table of one slab
  has one way for batches without exclusions and candidates, whose condition reads nothing but the widths of these
  two: a session that knows both to be 0 folds it at load, and nothing but this way is left.
- A plain layout has one product and one selection for all of these: an export for GPUs, which have memory traffic to
  spare, and where each further node is one more start of a kernel.
- A user vector that is NaN, infinite or so large that a score would overflow gets no recommendation at all.
- A score that only `NEVER` or `MASKED` can make is read as -inf: such an item is no recommendation, nor a candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

from recommender.engine.coarse import COARSE_PART, COARSE_ROWS
from recommender.engine.masked.bounds import BOUNDS
from recommender.export.head.blocks import (
    all_scores,
    from_all,
    from_scores,
    from_slabs,
    product,
)
from recommender.export.head.bounds import Bounds, no_bounds
from recommender.export.head.coarse import CoarseHead, most_wanted
from recommender.export.head.codes import Codes
from recommender.export.head.named import from_candidates, from_coarse_candidates
from recommender.export.head.selection import FLOAT, INT64
from recommender.export.head.slabs import batch_of
from recommender.export.nodes import Nodes
from recommender.export.table import NEVER, Layout

Plan: TypeAlias = Callable[[Nodes], tuple[str, ...]]

# Above one chosen block in this many, selecting from everything is faster than from the chosen.
_BLOCKS_PER_K = 8
# Scoring the items of a block again costs more than to select from it: above one in this many, slabs are slower.
_SLAB_BLOCKS_PER_K = 64
# From this many rows on, slabs are faster than one product.
_SLAB_ROWS = 40
# The largest |score| without `NEVER`: with it, sums stay above float32's lowest and below half of `NEVER`.
_MOST = -NEVER / 8


def add_head(
    g: Nodes,
    users: str,
    layout: Layout,
    *,
    largest: float,
    bias: bool,
    codes: Codes | None = None,
    never: bool = False,
) -> dict[str, str]:
    """Add the head to `g`; returns the names of its values by output.

    `users` is float32 [batch, d]; the graph has the inputs `k`, `excluded`, `candidates` and
    `candidates_length`, and the initializer `item_table` in this layout. `largest` is the largest absolute value in
    the table but for `NEVER`; `bias` says that its last column is a bias, `never` that some items have `NEVER` there.
    With `codes` the graph has the input `coarse_rows` and the initializer `item_codes` too; batches of these sizes
    start from coarse scores, and `fallbacks` int64 [batch] is 1 for each row that they could not rank. Where
    `gives_bounds`, the graph has the input `bounded` and the output `bounds`.
    """
    sound = g.op(
        "LessOrEqual",
        g.op("ReduceL1", users, g.int64(1), keepdims=1),
        g.float32(_MOST / max(largest, 1.0)),
    )
    users = g.op("Where", sound, users, g.float32(0))
    if bias:
        batch = batch_of(g, users)
        one = g.constant(np.ones((1, 1), np.float32))
        column = g.op("Expand", one, g.op("Concat", batch, g.int64(1), axis=0))
        users = g.op("Concat", users, column, axis=1)
    # Of one row, whose shape has only the width: ONNX Runtime folds whole shapes only.
    row = g.op("Gather", "candidates", g.constant(np.array(0)), axis=0)
    whole = g.op("Equal", g.op("Shape", row), g.int64(0))
    # Outputs besides ids and scores.
    more = (() if codes is None else ("fallbacks",)) + ((BOUNDS,) if gives_bounds(layout, codes) else ())
    if codes is None:
        rank, candidates = _plan(g, users, layout, whole), partial(from_candidates, users=users, layout=layout)
    else:
        wanted = _takes_codes(g, users)
        rank = _coarse_plan(g, users, layout, codes, wanted)
        candidates = partial(from_candidates, users=users, layout=layout)
        if not len(codes.long):  # which have no codes
            candidates = partial(from_coarse_candidates, users=users, layout=layout, codes=codes, wanted=wanted)

    def restricted(inner: Nodes) -> tuple[str, ...]:
        def named(body: Nodes) -> tuple[str, ...]:
            told = (no_bounds(body) if name == BOUNDS else _no_fallbacks(body, users) for name in more)
            return *candidates(body), *told

        types = (INT64, FLOAT, *({"fallbacks": INT64, BOUNDS: FLOAT}[name] for name in more))
        ids, scores, *told = inner.choose(whole, rank, named, types)
        real = inner.op("And", sound, inner.op("Greater", scores, inner.float32(NEVER / 2)))
        return inner.op("Where", real, ids, nothing), inner.op("Where", real, scores, lowest), *told

    def unrestricted(inner: Nodes) -> tuple[str, ...]:
        ids, scores = from_scores(inner, product(inner, users), users, layout)
        real = inner.op("And", sound, inner.op("Greater", scores, inner.float32(NEVER / 2))) if never else sound
        return inner.op("Where", real, ids, nothing), inner.op("Where", real, scores, lowest)

    lowest, nothing = g.float32(-np.inf), g.int64(-1)
    if more:
        return dict(zip(("recommendations", "scores", *more), restricted(g), strict=True))
    ids, scores = g.choose(_unrestricted(g, whole), unrestricted, restricted, (INT64, FLOAT))
    return {"recommendations": ids, "scores": scores}


def gives_bounds(layout: Layout, codes: Codes | None) -> bool:
    """Whether the head gives the bounds of blocks: where one product is quick, a row may look at all it is allowed."""
    return codes is not None or layout.slabs > 1


def _unrestricted(g: Nodes, whole: str) -> str:
    """Whether the batch excludes nothing and ranks the whole catalogue."""
    return g.op(
        "And", whole, g.op("Equal", g.op("Slice", g.op("Shape", "excluded"), g.int64(0), g.int64(1)), g.int64(0))
    )


def coarse_pays(layout: Layout) -> bool:
    """Whether coarse scores can choose among the blocks of this catalogue at all."""
    return most_wanted(layout.full_blocks // _BLOCKS_PER_K) >= 1


def _plan(g: Nodes, users: str, layout: Layout, whole: str) -> Plan:
    """How to rank the whole catalogue in float32."""
    if layout.slabs == 1:
        return lambda inner: from_scores(inner, all_scores(inner, users, "excluded", layout), users, layout)
    many = g.op("Greater", "k", g.int64(layout.full_blocks // _SLAB_BLOCKS_PER_K))
    at_once = g.op("And", whole, g.op("Or", g.op("Less", batch_of(g, users), g.int64(_SLAB_ROWS)), many))
    their, pairs = _where(g, at_once, users, "excluded")
    # Outside of every If: ONNX Runtime packs a table only for a product at the top level, and masks in place only what
    # was made with it.
    scores, bounds = all_scores(g, their, pairs, layout), Bounds.of(g, users)
    return lambda inner: inner.choose(
        at_once,
        lambda body: from_scores(body, scores, users, layout, bounds),
        lambda body: from_slabs(body, users, "excluded", layout, bounds),
        (INT64, FLOAT, FLOAT),
    )


def _takes_codes(g: Nodes, users: str) -> str:
    """Whether the batch is of a size that takes coarse scores: bool [1]."""
    least, most = (g.op("Slice", COARSE_ROWS, g.int64(at), g.int64(at + 1)) for at in (0, 1))
    batch = batch_of(g, users)
    return g.op("And", g.op("LessOrEqual", least, batch), g.op("LessOrEqual", batch, most))


def _coarse_plan(g: Nodes, users: str, layout: Layout, codes: Codes, wanted: str) -> Plan:
    """How to rank the whole catalogue with coarse scores, where they are `wanted`, bool [1]."""
    few = g.op("LessOrEqual", "k", g.int64(layout.full_blocks // _SLAB_BLOCKS_PER_K))
    able = g.op("LessOrEqual", "k", g.int64(most_wanted(layout.full_blocks // _BLOCKS_PER_K)))
    bounds = Bounds.of(g, users)

    def exact(inner: Nodes) -> tuple[str, ...]:
        ids, scores, found = inner.choose(
            few,
            lambda body: from_slabs(body, users, "excluded", layout, bounds),
            lambda body: (
                *from_all(body, all_scores(body, users, "excluded", layout), layout),
                no_bounds(body),
            ),
            (INT64, FLOAT, FLOAT),
        )
        return ids, scores, _no_fallbacks(inner, users), found

    def coarse(inner: Nodes) -> tuple[str, ...]:
        inner.part = COARSE_PART
        return CoarseHead(codes, layout).rank(inner, users, "excluded", bounds)

    return lambda inner: inner.choose(g.op("And", able, wanted), coarse, exact, (INT64, FLOAT, INT64, FLOAT))


def _no_fallbacks(g: Nodes, users: str) -> str:
    return g.op("Expand", g.int64(0), batch_of(g, users))


def _where(g: Nodes, wanted: str, *rows: str) -> list[str]:
    """These rows where they are wanted, otherwise none."""
    zero, last = g.int64(0), g.int64(np.iinfo(np.int64).max)
    end = g.op("Where", wanted, last, zero)
    return [g.op("Slice", each, zero, end, zero) for each in rows]
