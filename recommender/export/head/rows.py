"""Rows: some rows of a batch, ranked separately and put back among the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recommender.export.head.selection import INT64, places
from recommender.export.head.slabs import Pairs
from recommender.export.nodes import Nodes


@dataclass(frozen=True, slots=True)
class Rows:
    """Names the numbers of some rows, int64 [f], ascending."""

    numbers: str

    @classmethod
    def of(cls, g: Nodes, chosen: str) -> Rows:
        """The rows where bool [batch, 1] is true."""
        flat = g.op("Squeeze", chosen, g.int64(1))
        return cls(g.op("Squeeze", g.op("NonZero", flat), g.int64(0)))

    def count(self, g: Nodes) -> str:
        """How many they are, int64 [1]."""
        return g.op("Shape", self.numbers)

    def only(self, g: Nodes, kept: str) -> Rows:
        """Those of them where bool [f, 1] is true."""
        return Rows(g.op("Compress", self.numbers, g.op("Squeeze", kept, g.int64(1)), axis=0))

    def take(self, g: Nodes, values: str) -> str:
        """These rows of `values` [batch, …]."""
        return g.op("Gather", values, self.numbers, axis=0)

    def put(self, g: Nodes, values: str, own: str) -> str:
        """A copy of `values` [batch, n] with `own` [f, n] in these rows."""
        return g.op("ScatterND", values, g.op("Unsqueeze", self.numbers, g.int64(1)), own)

    def pairs(self, g: Nodes, excluded: str, batch: str) -> str:
        """The excluded pairs of these rows, int64 [n, 2], which count their rows from 0."""
        pairs, nowhere = Pairs.of(g, excluded), g.op("Expand", g.int64(-1), batch)
        zero, one = (g.constant(np.array(number, np.int64)) for number in (0, 1))
        order = g.op("Range", zero, g.op("Squeeze", self.count(g)), one)
        place = g.op("Gather", g.op("ScatterElements", nowhere, self.numbers, order, axis=0), pairs.rows, axis=0)
        return g.op("Compress", places(g, place, pairs.items), g.op("GreaterOrEqual", place, g.int64(0)), axis=0)


@dataclass(frozen=True, slots=True)
class Turns:
    """A batch in turns of equally many rows; the last turn repeats the last row where rows are lacking."""

    rows: str  # int64 [turns, rows of a turn]
    size: str  # rows of all turns, int64 [1]
    batch: str  # int64 [1]

    @classmethod
    def of(cls, g: Nodes, batch: str, together: str) -> Turns:
        """Turns of `together` rows of `batch`, both int64 [1]."""
        one, zero = g.int64(1), g.constant(np.array(0, np.int64))
        last = g.op("Sub", batch, one)
        turns = g.op("Add", g.op("Div", last, together), one)
        size = g.op("Mul", turns, together)
        rows = g.op("Min", g.op("Range", zero, g.op("Squeeze", size), g.constant(np.array(1, np.int64))), last)
        return cls(g.op("Reshape", rows, g.op("Concat", turns, together, axis=0)), size, batch)

    def joined(self, g: Nodes, values: str) -> str:
        """`values` [turns, rows of a turn, n] as [batch, n]."""
        together = g.op("Reshape", values, g.op("Concat", self.size, g.int64(-1), axis=0))
        return g.op("Slice", together, g.int64(0), self.batch, g.int64(0))


def any_of(g: Nodes, chosen: str) -> str:
    """Whether bool [batch, 1] is true anywhere; false for no rows."""
    return g.op("Greater", g.op("ReduceSum", g.op("Cast", chosen, to=INT64), keepdims=0), g.constant(np.array(0)))
