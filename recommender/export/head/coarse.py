"""Coarse scores: the item table in 8 bits finds the items worth an exact score, and proves that it found them.

The product of users and items is what a large catalogue costs, and in 8 bits it costs a quarter. A user vector u is
folded with the steps of the codes, w = u · step, and coded as whole numbers p between -63 and 63: w ≈ s · p. Products
p · q sum up exactly in 32 bits; with p in 7 bits no CPU saturates, VNNI or not. A second digit t codes what p leaves:
w ≈ s · (p + t / 126). So an item has two coarse scores, for each of which, by Cauchy and Schwarz,

    a = u · middle + s · Σ p q,                |u·e - a|  ≤  |u| · max|e - middle - step q|  +  |w - s p| · max|q|
    f = u · middle + s · Σ (p + t / 126) q,    |u·e - f|  ≤  the same with the smaller |w - s (p + t / 126)|

with Euclidean norms; the maxima are over all items, known at export, and the norms of u and of w's rests are measured
for every user. What rounding in float32 adds is bounded by the number of columns.

A row is ranked in three looks, each at less than the one before:

1. The largest Σ p q of each block, from a walk over all codes. The blocks with the largest are looked at again.
2. The finer score f of each item in these blocks. The items with the largest are looked at again.
3. The exact score in float32 of these items, of which the K best are the answer.

If the K-th exact score lies above the largest a of a block left out and above the largest f of an item left out, each
plus its bound, nothing left out can be among the K best, equal scores included: the answer is proven. Only too low a
coarse score could lose an item. So a bias far below the others is coded as if it were higher: one item at -1e9 would
otherwise take all the steps of its column, and nothing could be proven. A few items that are far longer than all
others have no codes, and are among the items of every third look: see `long_items.py`.

A row that is not proven is ranked again by itself; its batch-mates keep their answers. Its K-th exact score is a lower
bound of the right one. So it is known how many blocks and items could matter, and that many are looked at; where this
is too much, the row is ranked from float32 slabs. `fallbacks` tells of which rows that is true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

from recommender.export.head.blocks import from_slabs, gathered_product
from recommender.export.head.bounds import Bounds, bounded_rows
from recommender.export.head.codes import CODES, MOST_SHARES, ZERO, Codes
from recommender.export.head.long_items import once, raised, with_long
from recommender.export.head.rows import Rows, Turns, any_of
from recommender.export.head.selection import FLOAT, INT64, MASKED, UINT8, last_column, mask, places, search, select
from recommender.export.head.slabs import Pairs, Slabs, batch_of, view
from recommender.export.head.users import INT8, LOWEST_SUM, CodedUsers
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout

_INT32 = TensorProto.INT32
# Blocks and items looked at for each wanted item, and on top of that: fewer make proofs fail, more cost time.
_BLOCKS_PER_ITEM, _MORE_BLOCKS = 3, 24
_ITEMS_PER_ITEM, _MORE_ITEMS = 2, 16
# Blocks that the rows without a proof may look at together in the second attempt.
_MOST_BLOCKS = 8_192
# A batch of so many rows is multiplied with two items at once, and takes whole slabs.
_FEW_ROWS = 8
# Rows whose codes are looked at together.
_ROWS_TOGETHER = 8


def most_wanted(blocks: int) -> int:
    """The largest k for which coarse scores may choose among this many blocks; below 1 there are too few."""
    return (blocks - _MORE_BLOCKS - 1) // _BLOCKS_PER_ITEM


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Names of the answers, and which rows' are proven: bool [batch, 1]."""

    ids: str
    scores: str
    proven: str


@dataclass(frozen=True, slots=True)
class CoarseHead:
    """Ranks the whole catalogue from coarse scores."""

    codes: Codes
    layout: Layout

    def rank(self, g: Nodes, vectors: str, excluded: str, bounds: Bounds) -> tuple[str, ...]:
        """Top-K for float32 [batch, columns]: ids, scores, 1 for each row that took float32 slabs, and `bounds`."""
        users, pairs = CodedUsers.of(g, vectors, self.codes), Pairs.of(g, excluded)
        maxima = self._maxima(g, users, pairs)

        def ranked(inner: Nodes) -> tuple[str, ...]:
            first = self._look(
                inner, users, maxima, pairs, self._first_blocks(inner), lambda _: self._first_items(inner)
            )
            left = inner.op("Not", first.proven)
            return inner.choose(
                any_of(inner, left),
                lambda body: self._again(body, vectors, excluded, maxima, first),
                lambda body: (first.ids, first.scores, _counted(body, left)),
                (INT64, FLOAT, INT64),
            )

        return *bounds.rank(g, vectors, ranked, told=1), self._bounds(g, users, maxima)

    def _bounds(self, g: Nodes, users: CodedUsers, maxima: str) -> str:
        """The largest score that an item of each full block can have, for the rows that are bounded."""
        scale, middle, of_blocks = (bounded_rows(g, each) for each in (users.scale, users.middle, users.of_blocks))
        own = replace(users, scale=scale, middle=middle, of_blocks=of_blocks)
        full = g.op("Slice", bounded_rows(g, maxima), g.int64(0), g.int64(self.layout.full_blocks), g.int64(1))
        most = own.most(g, g.op("Cast", full, to=FLOAT), of_blocks)
        return raised(g, most, bounded_rows(g, users.vectors), of_blocks, self.codes.long, self.layout)

    def _first_blocks(self, g: Nodes) -> str:
        return g.op("Add", g.op("Mul", "k", g.int64(_BLOCKS_PER_ITEM)), g.int64(_MORE_BLOCKS))

    def _first_items(self, g: Nodes) -> str:
        return g.op("Add", g.op("Mul", "k", g.int64(_ITEMS_PER_ITEM)), g.int64(_MORE_ITEMS))

    def _again(self, g: Nodes, vectors: str, excluded: str, maxima: str, first: _Ranked) -> tuple[str, ...]:
        """Rank the rows that are not proven once more: looking at all that could matter, or in float32."""
        rows = Rows.of(g, g.op("Not", first.proven))
        users = CodedUsers.of(g, rows.take(g, vectors), self.codes)
        floor = last_column(g, rows.take(g, first.scores))
        most = users.most(g, g.op("Cast", rows.take(g, maxima), to=FLOAT), users.of_blocks)
        needed = _count(g, g.op("GreaterOrEqual", most, floor))
        share = g.op("Min", g.op("Div", g.int64(_MOST_BLOCKS), rows.count(g)), g.int64(self.codes.blocks - 1))
        few = g.op("LessOrEqual", needed, share)
        types = (INT64, FLOAT, TensorProto.BOOL)
        ids, scores, proven = g.choose(
            any_of(g, few),
            lambda body: self._wider(body, rows, few, needed, vectors, excluded, maxima, first),
            lambda _: (first.ids, first.scores, first.proven),
            types,
        )
        left = g.op("Not", proven)

        def exact(body: Nodes) -> tuple[str, str]:
            own = Rows.of(body, left)
            pairs = own.pairs(body, excluded, batch_of(body, vectors))
            found = from_slabs(body, own.take(body, vectors), pairs, self.layout)
            return own.put(body, ids, found[0]), own.put(body, scores, found[1])

        ids, scores = g.choose(any_of(g, left), exact, lambda _: (ids, scores), (INT64, FLOAT))
        return ids, scores, _counted(g, left)

    def _wider(
        self,
        g: Nodes,
        rows: Rows,
        few: str,
        needed: str,
        vectors: str,
        excluded: str,
        maxima: str,
        first: _Ranked,
    ) -> tuple[str, str, str]:
        """The answers, with the rows for which `few` is true ranked again, by the blocks and items that they need."""
        own = rows.only(g, few)
        users = CodedUsers.of(g, own.take(g, vectors), self.codes)
        pairs = Pairs.of(g, own.pairs(g, excluded, batch_of(g, vectors)))
        floor = last_column(g, own.take(g, first.scores))
        blocks = g.op("Max", _most(g, g.op("Where", few, needed, g.int64(0))), self._first_blocks(g))

        def items(sums: str) -> str:
            there = g.op("Sub", g.op("Shape", sums, start=1, end=2), g.int64(1))
            counted = _most(g, _count(g, g.op("GreaterOrEqual", users.most(g, sums, users.of_items), floor)))
            return g.op("Min", g.op("Max", counted, self._first_items(g)), there)

        found = self._look(g, users, own.take(g, maxima), pairs, blocks, items)
        return (
            own.put(g, first.ids, found.ids),
            own.put(g, first.scores, found.scores),
            own.put(g, first.proven, found.proven),
        )

    def _maxima(self, g: Nodes, users: CodedUsers, pairs: Pairs) -> str:
        """The largest Σ p q of each block, padding included: int32 [batch, blocks]."""
        batch = batch_of(g, users.vectors)
        digit = g.op("Gather", users.digits, g.constant(np.array(0)), axis=2)
        across = g.op("Transpose", digit, perm=[1, 0])
        few = g.op("LessOrEqual", batch, g.int64(_FEW_ROWS))
        # Kernels have room for 16 rows of the batch. A few take the room of twice as many, and half as long a table.
        (across,) = g.choose(few, lambda body: (_twice(body, across),), lambda _: (across,), (INT8,))
        together, shares = g.op("Where", few, g.int64(2), g.int64(1)), g.int64(1)
        cut = _FEW_ROWS
        for share in (2 << power for power in range(MOST_SHARES.bit_length() - 1)):
            shares = g.op("Where", g.op("Greater", batch, g.int64(cut)), g.int64(share), shares)
            cut *= 2
        slabs, items, columns = self.codes.codes.shape
        size = g.op("Div", g.int64(items), shares)
        rows, wide = g.op("Div", size, together), g.op("Mul", g.int64(columns), together)
        zero = g.constant(np.array(ZERO, np.uint8))
        walk = Slabs(
            table=g.op("Reshape", CODES, g.op("Concat", g.op("Mul", g.int64(slabs), shares), rows, wide, axis=0)),
            stored=UINT8,
            items=size,
            block=self.codes.block,
            product=lambda inner, slab: inner.op("MatMulInteger", slab, across, zero),
            scored=_INT32,
            lowest=np.array(LOWEST_SUM, np.int32),
        )
        return walk.maxima(g, batch, pairs)

    def _look(
        self,
        g: Nodes,
        users: CodedUsers,
        maxima: str,
        pairs: Pairs,
        number: str,
        items: Callable[[str], str],
    ) -> _Ranked:
        """Look at this `number` of blocks, int64 [1], and at as many of their items.

        `items` is the number of items by the finer sums, float32 [batch, items of the blocks].
        """
        zero, one = g.int64(0), g.int64(1)
        best, order = g.ops("TopK", 2, maxima, g.op("Add", number, one), axis=1)
        left_out = g.op("Cast", last_column(g, best), to=FLOAT)
        edge_of_blocks = users.most(g, left_out, users.of_blocks)
        chosen, _ = g.ops("TopK", 2, g.op("Slice", order, zero, number, one), number, axis=1, largest=0)

        sums = self._finer(g, users, chosen, pairs)
        number = items(sums)
        best, order = g.ops("TopK", 2, sums, g.op("Add", number, one), axis=1)
        edge_of_items = users.most(g, last_column(g, best), users.of_items)
        best, order = (g.op("Slice", each, zero, number, one) for each in (best, order))
        size = g.int64(self.codes.block)
        block = g.op("GatherElements", chosen, g.op("Div", order, size), axis=1)
        ids = g.op("Add", g.op("Mul", block, size), g.op("Mod", order, size))
        # What is excluded, and what is padding, sorts behind every item.
        end = g.int64(self.layout.items)
        ids = g.op("Where", g.op("Greater", best, g.float32(LOWEST_SUM / 2)), ids, end)
        ids = with_long(g, ids, self.codes.long)
        ids, _ = g.ops("TopK", 2, ids, g.op("Shape", ids, start=1, end=2), axis=1, largest=0)
        vectors = g.op("Gather", TABLE, g.op("Min", ids, g.int64(self.layout.items - 1)), axis=0)
        scores = gathered_product(g, vectors, users.vectors)
        scores = g.op("Where", g.op("Less", ids, end), scores, g.float32(MASKED))
        scores = once(g, ids, scores, self.codes.long, pairs)
        ids, scores = select(g, ids, scores, "k")
        worst = last_column(g, scores)
        return _Ranked(ids, scores, g.op("Greater", worst, g.op("Max", edge_of_blocks, edge_of_items)))

    def _finer(self, g: Nodes, users: CodedUsers, chosen: str, pairs: Pairs) -> str:
        """Σ (p + t / 126) q of each item in these blocks, int64 [batch, m] ascending: float32 [batch, m * block]."""
        size, columns = self.codes.block, self.layout.columns
        codes = view(g, CODES, users.vectors, -1, size * columns)
        batch = batch_of(g, users.vectors)
        together = g.op("Min", batch, g.int64(_ROWS_TOGETHER))
        rows = helper.make_tensor_value_info(g.fresh("rows"), INT64, [None])

        def some(body: Nodes) -> tuple[str]:
            blocks = body.op("Gather", chosen, rows.name, axis=0)
            own = body.op("Reshape", body.op("Gather", codes, blocks, axis=0), body.int64(0, -1, columns))
            theirs = replace(users, digits=body.op("Gather", users.digits, rows.name, axis=0))
            return (theirs.finer(body, own),)

        # A few rows at a time: the codes that they look at stay in the second cache, and take no memory for each row.
        turns = Turns.of(g, batch, together)
        sums = g.op("Scan", turns.rows, num_scan_inputs=1, body=g.subgraph("finer", some, (FLOAT,), [rows]))
        sums = turns.joined(g, sums)

        def masked(body: Nodes) -> tuple[str]:
            wide = body.int64(size)
            slot, found = search(body, chosen, pairs.rows, body.op("Div", pairs.items, wide))
            place = body.op("Add", body.op("Mul", slot, wide), body.op("Mod", pairs.items, wide))
            return (mask(body, sums, places(body, pairs.rows, place), keep=found, lowest=LOWEST_SUM),)

        (sums,) = g.choose(pairs.any, masked, lambda _: (sums,), (FLOAT,))
        return sums


def _twice(g: Nodes, across: str) -> str:
    """A matrix [n, m] twice on the diagonal of one of zeros, [2 n, 2 m]."""
    none = g.op("Sub", across, across)
    above, below = g.op("Concat", across, none, axis=1), g.op("Concat", none, across, axis=1)
    return g.op("Concat", above, below, axis=0)


def _count(g: Nodes, true: str) -> str:
    """How many of each row are true: int64 [batch, 1]."""
    return g.op("ReduceSum", g.op("Cast", true, to=INT64), g.int64(1), keepdims=1)


def _most(g: Nodes, counts: str) -> str:
    """The largest of int64 [batch, 1], at least one row: int64 [1]."""
    return g.op("ReduceMax", g.op("Reshape", counts, g.int64(-1)), keepdims=1)


def _counted(g: Nodes, rows: str) -> str:
    """Bool [batch, 1] as int64 [batch]."""
    return g.op("Squeeze", g.op("Cast", rows, to=INT64), g.int64(1))
