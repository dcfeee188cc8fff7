"""Long items: a few that have no codes, being far longer than all others, so that a ranking looks at all of them.

They stand in the table as everywhere else. Their places among the codes hold those of other items, so they may also be
found there; what is found twice counts once. Without long items nothing is added to the graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recommender.export.head.selection import FLOAT, MASKED, mask, places, search
from recommender.export.head.slabs import Pairs, each_row
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout

Ids = npt.NDArray[np.int64]


def with_long(g: Nodes, ids: str, long: Ids) -> str:
    """The `ids` of each row, int64 [batch, m], and the long ones behind them."""
    return ids if not len(long) else g.op("Concat", ids, each_row(g, ids, long), axis=1)


def once(g: Nodes, ids: str, scores: str, long: Ids, pairs: Pairs) -> str:
    """The `scores` of `ids`, ascending, both [batch, m]; masked if an id occurs twice, or is excluded."""
    if not len(long):
        return scores
    zero, one = g.int64(0), g.int64(1)
    nothing = g.op("Sub", g.op("Slice", ids, zero, one, one), one)
    before = g.op("Concat", nothing, g.op("Slice", ids, zero, g.int64(-1), one), axis=1)
    again = g.op("Equal", ids, before)
    scores = g.op("Where", again, g.float32(MASKED), scores)

    def masked(body: Nodes) -> tuple[str]:
        place, found = search(body, ids, pairs.rows, pairs.items)
        return (mask(body, scores, places(body, pairs.rows, place), keep=found),)

    (scores,) = g.choose(pairs.any, masked, lambda _: (scores,), (FLOAT,))
    return scores


def raised(g: Nodes, bounds: str, vectors: str, margin: str, long: Ids, layout: Layout) -> str:
    """The `bounds` [rows, full blocks], raised to the scores of long items plus `margin` [rows, 1]."""
    inside = long[long < layout.full_blocks * layout.block]
    if not len(inside):
        return bounds
    scores = g.op("Gemm", vectors, g.op("Gather", TABLE, g.constant(inside), axis=0), transB=1)
    blocks = each_row(g, vectors, inside // layout.block)
    return g.op("ScatterElements", bounds, blocks, g.op("Add", scores, margin), axis=1, reduction="max")
