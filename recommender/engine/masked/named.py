"""Rows that rank exactly the items that they name.

They are ranked as candidates, in runs of `MOST_LOOKED_UP` at most, whose best are merged. So memory is bounded, even if
all items of a large catalogue are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.batching.faults import FaultyRowsError, whole
from recommender.domain import Query, Ranking
from recommender.engine.contract import MOST_LOOKED_UP, Contract, Feed, Outputs
from recommender.errors import EngineError
from recommender.masks import ItemMask

_ALIKE = 4
"""Rows that name this many times fewer items than others have a separate run: a run looks up the longest list for
all."""

Outcome: TypeAlias = Ranking | EngineError
Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Named:
    """A row, by its place among the queries, of which exactly these items are ranked, ascending."""

    place: int
    query: Query
    ids: Ids


class NamedRanking:
    """Ranks the named items of rows.

    `run` runs a feed for a number of recommendations. `padding` is that of `Contract.pack`.
    """

    def __init__(self, contract: Contract, run: Callable[[Feed, int], Outputs], padding: int | None) -> None:
        self._contract = contract
        self._run = run
        self._padding = padding

    def outcomes(self, rows: Sequence[Named]) -> dict[int, Outcome]:
        """The outcome of each row, by its place, in runs of rows with about as many items."""
        pieces = [
            Named(row.place, row.query, row.ids[start : start + MOST_LOOKED_UP])
            for row in rows
            for start in range(0, len(row.ids), MOST_LOOKED_UP)
        ]
        pieces.sort(key=lambda row: len(row.ids), reverse=True)
        found: dict[int, list[Outcome]] = {row.place: [] for row in rows}
        while pieces:
            longest = len(pieces[0].ids)
            alike = sum(len(row.ids) * _ALIKE >= longest for row in pieces[: MOST_LOOKED_UP // longest])
            sharing, pieces = pieces[: max(alike, 1)], pieces[max(alike, 1) :]
            for row, outcome in zip(sharing, self._run_named(sharing), strict=True):
                found[row.place].append(outcome)
        return {row.place: merged(found[row.place], row.query.k) for row in rows}

    def _run_named(self, rows: Sequence[Named]) -> Sequence[Outcome]:
        """The outcomes of one run."""
        queries = [row.query._replace(excluded=(), candidates=None, masks=()) for row in rows]
        feed = self._contract.pack(queries, self._padding)
        lengths = np.array([len(row.ids) for row in rows])
        candidates = np.zeros((len(rows), int(lengths.max())), np.int64)
        for row, own in zip(rows, candidates, strict=True):
            own[: len(row.ids)] = row.ids
        feed["candidates"], feed["candidates_length"] = candidates, lengths
        outputs = self._run(feed, max(query.k for query in queries))
        return outcomes_of(partial(self._contract.unpack, outputs, queries))


def all_allowed(place: int, query: Query, items: int) -> Named:
    """The row with all of so many items that its masks allow, and that it does not exclude."""
    least, *others = sorted(query.masks, key=lambda mask: mask.count)
    ids = least.ids()
    return Named(place, query, without_excluded(ids[allowed_of(ids, others) & (ids < items)], query))


def without_excluded(ids: Ids, query: Query) -> Ids:
    """Those of the ids, ascending, that the query does not exclude."""
    return np.setdiff1d(ids, np.array(query.excluded, np.int64), assume_unique=True) if query.excluded else ids


def allowed_of(ids: Ids, masks: Sequence[ItemMask]) -> npt.NDArray[np.bool_]:
    """Which of these items all masks allow."""
    allowed = np.ones(len(ids), np.bool_)
    for mask in masks:
        allowed &= mask.holds(ids)
    return allowed


def outcomes_of(rank: Callable[[], Sequence[Ranking]]) -> Sequence[Outcome]:
    """Run `rank`; returns an outcome for each row, faulty ones included."""
    try:
        return rank()
    except FaultyRowsError as error:
        return error.outcomes


def merged(outcomes: Sequence[Outcome], k: int) -> Outcome:
    """The k best of what the runs for one row gave; the first fault if there is one."""
    if not outcomes:
        return Ranking([], [])
    if len(outcomes) == 1:
        return outcomes[0]
    try:
        rankings = whole(outcomes)
    except FaultyRowsError as error:
        return next(outcome for outcome in error.outcomes if isinstance(outcome, EngineError))
    ids = np.array([item for ranking in rankings for item in ranking.item_ids], np.int64)
    scores = np.array([score for ranking in rankings for score in ranking.scores])
    best = np.lexsort((ids, -scores))[:k]
    return Ranking(ids[best].tolist(), scores[best].tolist())
