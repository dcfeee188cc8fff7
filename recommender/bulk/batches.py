"""Batches of a table's rows: sorted by length, so that little is padding, and the same whenever they are made.

Plain rows are packed here, many batches at once: a ranking thread has nothing to do between two runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recommender.bulk.lists import Ints
from recommender.bulk.rows import Plain, Rows
from recommender.domain import Query
from recommender.engine.contract import Contract, Feed
from recommender.masks import ItemMask

_PACKED = frozenset(
    {"user_history", "history_length", "k", "excluded", "candidates", "candidates_length", "user"}
)  # fmt: skip
"""The inputs that plain rows are packed for."""
_OF_QUERIES = frozenset({"excluded", "user"})
"""The inputs of a query besides its history."""
_BLOCK_ROWS = 8192
_BLOCK_CELLS = 1 << 20
"""Approximate number of rows and ids that are packed at once. It bounds the memory of packing."""
_NO_PAIRS = np.empty((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class PlainBatch:
    """Plain rows of one run: their places in the table, how many each wants, and their feed.

    The feed is that of `Contract.pack` for `queries`.
    """

    places: Ints
    wanted: Ints
    k: int
    feed: Feed
    masks: tuple[ItemMask, ...] = ()
    """Those of the version; the feed knows none."""

    def queries(self) -> list[Query]:
        """The same as queries."""
        rows = len(self.places)
        lengths, users = self.feed["history_length"].tolist(), self.feed.get("user", np.zeros(rows, np.int64)).tolist()
        pairs = self.feed.get("excluded", _NO_PAIRS)
        bounds = np.searchsorted(pairs[:, 0], np.arange(rows + 1)).tolist()
        return [
            Query(
                tuple(self.feed["user_history"][row, : lengths[row]].tolist()),
                k,
                tuple(pairs[bounds[row] : bounds[row + 1], 1].tolist()),
                user=users[row],
                masks=self.masks,
            )
            for row, k in enumerate(self.wanted.tolist())
        ]


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Queries of one run, and their places in the table."""

    places: list[int]
    queries: list[Query]


def batches(rows: Rows, most: int, contract: Contract) -> Iterator[PlainBatch | QueryBatch]:
    """The batches of a table, of `most` rows at most.

    All are of queries if the model takes what is not packed here, or if items are hidden.
    """
    packs = contract.batched and contract.inputs <= _PACKED and not rows.plain.masks
    plain = rows.plain
    restricted = (plain.excluded.lengths > 0) | (plain.seen.lengths > 0)
    plain = plain.take(np.lexsort((plain.histories.lengths, restricted)))
    longest = int(plain.histories.lengths.max(initial=1))
    step = max(min(_BLOCK_ROWS, _BLOCK_CELLS // max(longest, 1)) // most, 1) * most
    for start in range(0, len(plain.places), step):
        block = plain.take(slice(start, start + step))
        for batch in _packed(block, most, contract.inputs if packs else _OF_QUERIES, contract.padding):
            yield batch if packs else QueryBatch(batch.places.tolist(), batch.queries())
    asked = sorted(rows.queries.items(), key=lambda row: (bool(row[1].excluded), len(row[1].history)))
    for start in range(0, len(asked), most):
        some = asked[start : start + most]
        yield QueryBatch([place for place, _ in some], [query for _, query in some])


def _packed(plain: Plain, most: int, inputs: frozenset[str], padding: int) -> Iterator[PlainBatch]:
    """The batches of a block of rows. Their arrays are slices of the block's."""
    lengths = plain.histories.lengths
    firsts = np.arange(0, len(lengths), most)
    sizes = np.diff(firsts, append=len(lengths))
    # No column at all would be a shape that no network was traced with.
    widths = np.maximum(np.maximum.reduceat(lengths, firsts), 1)
    cells = plain.histories.padded(np.repeat(widths, sizes), padding)
    ks = np.maximum.reduceat(plain.ks, firsts).tolist()
    pairs = _pairs(plain, np.repeat(firsts, sizes)) if "excluded" in inputs else [_NO_PAIRS] * len(firsts)
    cell = 0
    for place, (first, size, width) in enumerate(zip(firsts.tolist(), sizes.tolist(), widths.tolist(), strict=True)):
        rows, after = slice(first, first + size), cell + size * width
        feed: Feed = {"user_history": cells[cell:after].reshape(size, width), "history_length": lengths[rows]}
        if "k" in inputs:
            feed["k"] = np.array([ks[place]], np.int64)
        if "excluded" in inputs:
            feed["excluded"] = pairs[place]
        if "candidates" in inputs:
            feed["candidates"], feed["candidates_length"] = np.empty((size, 0), np.int64), np.zeros(size, np.int64)
        if "user" in inputs:
            feed["user"] = plain.users[rows]
        yield PlainBatch(plain.places[rows], plain.ks[rows], ks[place], feed, plain.masks)
        cell = after


def _pairs(plain: Plain, heads: Ints) -> list[Ints]:
    """The (row, item) pairs of each batch's exclusions, int64 [nnz, 2]: each once, ascending.

    `heads` has for each row of the block the first of its batch.
    """
    firsts = np.unique(heads)
    lists = [each for each in (plain.excluded, plain.seen) if each.lengths.any()]
    if not lists:
        return [_NO_PAIRS] * len(firsts)
    row = np.concatenate([np.repeat(np.arange(len(heads)), each.lengths) for each in lists])
    items = np.concatenate([each.flat() for each in lists])
    kept = items < plain.recommendable
    each = np.unique(row[kept] << 32 | items[kept])
    row = each >> 32
    pairs = np.stack((row - heads[row], each & 0xFFFFFFFF), axis=1)
    return np.split(pairs, np.searchsorted(row, firsts[1:]))
