"""Bounds: the largest score that each block may hold, for rows that are ranked outside of the graph.

A row with only some allowed items is not ranked by its blocks, of which the best may hold none of these. It is named in
the input `bounded` instead, and the output `bounds` has the maxima that the walk over the table found for it. So it
costs its batch-mates nothing. A batch of such rows only ranks nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recommender.engine.masked.bounds import BOUNDED
from recommender.export.head.selection import FLOAT, INT64, MASKED
from recommender.export.head.slabs import batch_of
from recommender.export.nodes import Nodes


@dataclass(frozen=True, slots=True)
class Bounds:
    """Names whether every row of the batch is bounded, bool [1]."""

    every: str

    @classmethod
    def of(cls, g: Nodes, users: str) -> Bounds:
        """Of the input `bounded`, for as many rows as `users` has."""
        return cls(g.op("Equal", g.op("Shape", BOUNDED), batch_of(g, users)))

    def rank(self, g: Nodes, users: str, ranked: Callable[[Nodes], tuple[str, ...]], told: int = 0) -> tuple[str, ...]:
        """The outputs of `ranked`, unless every row is bounded: ids, scores, and `told` many int64 [batch]."""

        def nothing(inner: Nodes) -> tuple[str, ...]:
            batch = batch_of(inner, users)
            shape = inner.op("Concat", batch, "k", axis=0)
            none = inner.op("Expand", inner.int64(0), batch)
            return (
                inner.op("Expand", inner.int64(-1), shape),
                inner.op("Expand", inner.float32(MASKED), shape),
                *[none] * told,
            )

        return g.choose(self.every, nothing, ranked, (INT64, FLOAT, *[INT64] * told))


def bounded_rows(g: Nodes, values: str) -> str:
    """The bounded rows of `values` [batch, …]."""
    return g.op("Gather", values, BOUNDED, axis=0)


def no_bounds(g: Nodes) -> str:
    """Fills `bounds` if a batch was not ranked by blocks."""
    return g.constant(np.empty((0, 0), np.float32))
