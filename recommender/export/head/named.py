"""Candidates: top-K of the items that each row names, ascending, by a gathered product.

If the file has a table in 8 bits, a row with many candidates looks at their codes first, a quarter of the bytes. The
finer scores f of `coarse.py` choose those that are scored in float32. If the K-th of these is above the largest f that
was left out, plus its bound, nothing left out can be among the K best. Otherwise the row is ranked by all its
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

from recommender.engine.coarse import COARSE_PART
from recommender.export.head.blocks import gathered_product
from recommender.export.head.codes import CODES, Codes
from recommender.export.head.rows import Rows, any_of
from recommender.export.head.selection import (
    FLOAT,
    INT64,
    MASKED,
    last_column,
    mask,
    places,
    real_candidates,
    search,
    select,
    select_filled,
)
from recommender.export.head.slabs import Pairs, batch_of, view
from recommender.export.head.users import LOWEST_SUM, CodedUsers
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout

# Candidates for each that is scored in float32: with fewer, their codes would spare nothing.
_WORTH = 8
# Items scored in float32 for each wanted one, and on top of that.
_ITEMS_PER_ITEM, _MORE_ITEMS = 2, 16


@dataclass(frozen=True, slots=True)
class Named:
    """Names the candidates int64 [batch, c], how many each row has, int64 [batch], and pairs of `excluded` ones."""

    ids: str = "candidates"
    lengths: str = "candidates_length"
    excluded: str = "excluded"

    def scored(self, g: Nodes, scores: str, layout: Layout, lowest: float) -> str:
        """The `scores` [batch, c] with `lowest` for padding and what is excluded."""
        real = real_candidates(g, self.ids, self.lengths)
        scores = g.op("Where", real, scores, g.float32(lowest))
        pairs = Pairs.of(g, self.excluded)

        def masked(inner: Nodes) -> tuple[str]:
            # Padding breaks the ascending order, so it is read as larger than any id.
            known = inner.op("Where", real, self.ids, inner.int64(layout.items))
            place, found = search(inner, known, pairs.rows, pairs.items)
            return (mask(inner, scores, places(inner, pairs.rows, place), keep=found, lowest=lowest),)

        (scores,) = g.choose(pairs.any, masked, lambda _: (scores,), (FLOAT,))
        return scores

    def rank(self, g: Nodes, users: str, layout: Layout) -> tuple[str, str]:
        """Top-K of all candidates, for float32 [batch, columns]."""
        scores = gathered_product(g, g.op("Gather", TABLE, self.ids, axis=0), users)
        return select_filled(g, self.ids, self.scored(g, scores, layout, MASKED), batch_of(g, users))


def from_candidates(g: Nodes, users: str, layout: Layout) -> tuple[str, str]:
    """Top-K of each row's own candidates."""
    return Named().rank(g, users, layout)


def from_coarse_candidates(g: Nodes, users: str, layout: Layout, codes: Codes, wanted: str) -> tuple[str, str]:
    """The same, from codes where there are many candidates and coarse scores are `wanted`, bool [1]."""
    number = g.op("Add", g.op("Mul", "k", g.int64(_ITEMS_PER_ITEM)), g.int64(_MORE_ITEMS))
    width = g.op("Shape", Named().ids, start=1, end=2)
    many = g.op("Greater", width, g.op("Mul", number, g.int64(_WORTH)))

    def coarse(inner: Nodes) -> tuple[str, str]:
        inner.part = COARSE_PART
        return _from_codes(inner, users, layout, codes, number)

    ids, scores = g.choose(
        g.op("And", many, wanted), coarse, lambda inner: from_candidates(inner, users, layout), (INT64, FLOAT)
    )
    return ids, scores


def _from_codes(g: Nodes, vectors: str, layout: Layout, codes: Codes, number: str) -> tuple[str, str]:
    """Top-K of candidates of which so many, int64 [1], are scored in float32."""
    named, users = Named(), CodedUsers.of(g, vectors, codes)
    table = view(g, CODES, vectors, -1, layout.columns)
    sums = named.scored(g, users.finer(g, g.op("Gather", table, named.ids, axis=0)), layout, LOWEST_SUM)
    zero, one, lowest = g.int64(0), g.int64(1), g.float32(LOWEST_SUM / 2)
    best, order = g.ops("TopK", 2, sums, g.op("Add", number, one), axis=1)
    left_out = last_column(g, best)
    order, _ = g.ops("TopK", 2, g.op("Slice", order, zero, number, one), number, axis=1, largest=0)
    ids, known = (g.op("GatherElements", each, order, axis=1) for each in (named.ids, sums))
    scores = gathered_product(g, g.op("Gather", TABLE, ids, axis=0), vectors)
    scores = g.op("Where", g.op("Greater", known, lowest), scores, g.float32(MASKED))
    ids, scores = select(g, ids, scores, "k")
    above = g.op("Greater", last_column(g, scores), users.most(g, left_out, users.of_items))
    left = g.op("Not", g.op("Or", above, g.op("LessOrEqual", left_out, lowest)))

    def exact(inner: Nodes) -> tuple[str, str]:
        rows = Rows.of(inner, left)
        own = Named(
            rows.take(inner, named.ids),
            rows.take(inner, named.lengths),
            rows.pairs(inner, named.excluded, batch_of(inner, vectors)),
        )
        found = own.rank(inner, rows.take(inner, vectors), layout)
        return rows.put(inner, ids, found[0]), rows.put(inner, scores, found[1])

    ids, scores = g.choose(any_of(g, left), exact, lambda _: (ids, scores), (INT64, FLOAT))
    return ids, scores
