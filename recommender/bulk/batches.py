"""Batches of a table's rows: sorted by length, so that little is padding, and the same whenever they are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recommender.bulk.lists import Ints, Lists
from recommender.bulk.rows import Plain, Rows
from recommender.domain import Query
from recommender.engine.contract import Contract, Feed

_PACKED = frozenset(
    {"user_history", "history_length", "k", "excluded", "candidates", "candidates_length", "user"}
)  # fmt: skip
"""The inputs that `packed` fills."""
_NO_PAIRS = np.empty((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class PlainBatch:
    """Plain rows of one run: a range of those in `plain`."""

    plain: Plain
    rows: slice

    @property
    def places(self) -> Ints:
        """Their places in the table."""
        return self.plain.places[self.rows]

    def queries(self) -> list[Query]:
        """The same as queries."""
        return [self.plain.query(row) for row in range(self.rows.start, self.rows.stop)]


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Queries of one run, and their places in the table."""

    places: list[int]
    queries: list[Query]


def can_pack(contract: Contract) -> bool:
    """Whether `packed` gives a model all of its inputs; if not, its rows are packed as queries."""
    return contract.batched and contract.inputs <= _PACKED


def batches(rows: Rows, most: int, *, packs: bool) -> Iterator[PlainBatch | QueryBatch]:
    """The batches of a table, of `most` rows at most; as queries unless the model `packs`."""
    plain = rows.plain
    restricted = (plain.excluded.lengths > 0) | (plain.seen.lengths > 0)
    plain = plain.take(np.lexsort((plain.histories.lengths, restricted)))
    for start in range(0, len(plain.places), most):
        batch = PlainBatch(plain, slice(start, min(start + most, len(plain.places))))
        yield batch if packs else QueryBatch(batch.places.tolist(), batch.queries())
    asked = sorted(rows.queries.items(), key=lambda row: (bool(row[1].excluded), len(row[1].history)))
    for start in range(0, len(asked), most):
        some = asked[start : start + most]
        yield QueryBatch([place for place, _ in some], [query for _, query in some])


def packed(batch: PlainBatch, contract: Contract) -> tuple[Feed, Ints]:
    """The feed of a run, as `Contract.pack` makes it of the same queries, and how many each row wants."""
    plain, rows = batch.plain, batch.rows
    histories, ks = plain.histories.take(rows), plain.ks[rows]
    feed: Feed = {"user_history": histories.padded(contract.padding), "history_length": histories.lengths}
    if "k" in contract.inputs:
        feed["k"] = np.array([ks.max()], np.int64)
    if "excluded" in contract.inputs:
        feed["excluded"] = _pairs(plain.excluded.take(rows), plain.seen.take(rows), plain.recommendable)
    if "candidates" in contract.inputs:
        feed["candidates"] = np.empty((len(ks), 0), np.int64)
        feed["candidates_length"] = np.zeros(len(ks), np.int64)
    if "user" in contract.inputs:
        feed["user"] = plain.users[rows]
    return feed, ks


def _pairs(excluded: Lists, seen: Lists, recommendable: int) -> Ints:
    """The (row, item) pairs of all exclusions, int64 [nnz, 2]: each once, ascending."""
    total = int(excluded.lengths.sum() + seen.lengths.sum())
    if not total:
        return _NO_PAIRS
    count = np.arange(len(excluded.lengths))
    row = np.concatenate((np.repeat(count, excluded.lengths), np.repeat(count, seen.lengths)))
    items = np.concatenate((excluded.flat(), seen.flat()))
    kept = items < recommendable
    each = np.unique(row[kept] << 32 | items[kept])
    return np.stack((each >> 32, each & 0xFFFFFFFF), axis=1)
