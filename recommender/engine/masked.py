"""Rows that carry masks: exact top-K of the items that their masks allow, and never fewer than there are.

Each row takes the way that its masks make cheap:

- Few items are allowed: exactly these are ranked, as candidates.
- Many are allowed: the row asks for more items, in a run with rows that have no masks, and drops those that are not
  allowed. This is exact if k remain, or if the model had no more to give.
- A row with fewer left asks again for more. Where the model gives no more, all allowed items are ranked.

Candidates are ranked in runs of `MOST_LOOKED_UP` at most, whose best are merged. So memory is bounded, also where all
items of a large catalogue are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.batching.faults import FaultyRowsError, whole
from recommender.domain import Model, Query, Ranking
from recommender.engine.contract import MOST_LOOKED_UP, Contract, Feed, Outputs
from recommender.errors import EngineError
from recommender.masks import ItemMask

Outcome: TypeAlias = Ranking | EngineError
Ids: TypeAlias = npt.NDArray[np.int64]

_FEW = 512
"""Allowed items that are ranked as candidates at once: to ask for more and drop some takes longer."""
_DEVIATIONS = 3
"""By how many standard deviations a row asks for more than it expects to need."""
_AGAIN = 4
"""A row that has too few left asks for so many times as many."""
_ALIKE = 4
"""Rows that ask for more than so many times as many as others have a run of their own: a run gives each row as many."""
_MOST_ASKED = 256
"""Items that a row asks for at most, to drop some, where it may rank exactly the allowed ones instead."""


@dataclass(frozen=True, slots=True)
class _Masked:
    """A row by its place among the queries, and how many items it asks for."""

    place: int
    query: Query
    asked: int

    def kept(self, ranking: Ranking) -> Ranking:
        """The k best of the answer that the masks allow."""
        ids, scores = ranking
        places: Iterable[int] = range(len(ids))
        for mask in self.query.masks:
            places = _held(places, ids, mask)
        kept = list(islice(places, self.query.k))
        return Ranking([ids[at] for at in kept], [scores[at] for at in kept])


@dataclass(frozen=True, slots=True)
class _Named:
    """A row of which exactly these items are ranked, ascending."""

    place: int
    query: Query
    ids: Ids


class MaskedRanking:
    """Ranks for queries of which some carry masks, by means of a model that knows no masks.

    `rank` gives the outcomes of queries without masks. `run` runs a feed for a number of recommendations. `padding` is
    that of `Contract.pack`.
    """

    def __init__(
        self,
        contract: Contract,
        model: Model,
        rank: Callable[[Sequence[Query]], Sequence[Outcome]],
        run: Callable[[Feed, int], Outputs],
        padding: int | None = None,
    ) -> None:
        self._contract = contract
        self._model = model
        self._rank = rank
        self._run = run
        self._padding = padding
        self._names = "candidates" in contract.inputs

    def outcomes(self, queries: Sequence[Query]) -> list[Outcome]:
        """What each query comes to, in their order."""
        found: dict[int, Outcome] = {}
        shared: list[_Masked] = []
        named: list[_Named] = []
        for place, query in enumerate(queries):
            if query.candidates is not None and query.masks:
                ids = np.array(query.candidates, np.int64)
                named.append(_Named(place, query, ids[_allowed(ids, query.masks)]))
            elif query.masks and self._few(query):
                named.append(self._all_allowed(place, query))
            else:
                shared.append(_Masked(place, query, min(self._first_number(query), self._most(query))))
        while shared:
            most = _ALIKE * min(row.asked for row in shared)
            together = [row for row in shared if row.asked <= most]
            again = [row for row in shared if row.asked > most]
            asked = [row.query._replace(k=row.asked, masks=()) for row in together]
            for row, outcome in zip(together, self._rank(asked), strict=True):
                found[row.place] = outcome
                if isinstance(outcome, EngineError) or not row.query.masks:
                    continue
                kept = row.kept(outcome)
                gave_all = len(outcome.item_ids) < row.asked or row.asked == self._model.items
                if len(kept.item_ids) == row.query.k or gave_all:
                    found[row.place] = kept
                elif row.asked < self._most(row.query):
                    again.append(_Masked(row.place, row.query, min(row.asked * _AGAIN, self._most(row.query))))
                elif self._names:
                    named.append(self._all_allowed(row.place, row.query))
                else:
                    found[row.place] = EngineError(
                        f"too few of the {row.asked} items that the model ranks are allowed, and it was exported "
                        "without the input `candidates`"
                    )
            shared = again
        found.update(self._rank_named(named))
        return [found[place] for place in range(len(queries))]

    def _few(self, query: Query) -> bool:
        """Whether to rank exactly the allowed items."""
        least = min(mask.count for mask in query.masks)
        return self._names and (least <= _FEW or self._first_number(query) > self._most(query))

    def _most(self, query: Query) -> int:
        most = self._model.max_k
        return max(min(most, _MOST_ASKED), query.k) if self._names else most

    def _first_number(self, query: Query) -> int:
        """How many items to ask for, so that k remain but for one row in some hundreds.

        Masks are taken to be independent of each other, and of what the row ranks highly.
        """
        share = math.prod(mask.count / mask.items for mask in query.masks if mask.items)
        if not query.masks or share == 0.0:
            return query.k if share else self._most(query) + 1
        # Of n items, n · share are allowed, give or take a deviation of √(n · share · (1 - share)).
        spread = _DEVIATIONS * math.sqrt(share * (1 - share))
        number = ((spread + math.sqrt(spread**2 + 4 * share * query.k)) / (2 * share)) ** 2
        return math.ceil(number)

    def _all_allowed(self, place: int, query: Query) -> _Named:
        """The row with all items that its masks allow, and that it does not exclude."""
        least, *others = sorted(query.masks, key=lambda mask: mask.count)
        ids = least.ids()
        ids = ids[_allowed(ids, others) & (ids < self._contract.items)]
        if query.excluded:
            ids = np.setdiff1d(ids, np.array(query.excluded, np.int64), assume_unique=True)
        return _Named(place, query, ids)

    def _rank_named(self, rows: Sequence[_Named]) -> dict[int, Outcome]:
        """Rank each row's own items, in runs of rows that have about as many."""
        pieces = [
            _Named(row.place, row.query, row.ids[start : start + MOST_LOOKED_UP])
            for row in rows
            for start in range(0, len(row.ids), MOST_LOOKED_UP)
        ]
        pieces.sort(key=lambda row: len(row.ids), reverse=True)
        found: dict[int, list[Outcome]] = {row.place: [] for row in rows}
        while pieces:
            together = max(MOST_LOOKED_UP // len(pieces[0].ids), 1)
            sharing, pieces = pieces[:together], pieces[together:]
            for row, outcome in zip(sharing, self._run_named(sharing), strict=True):
                found[row.place].append(outcome)
        return {row.place: _merged(found[row.place], row.query.k) for row in rows}

    def _run_named(self, rows: Sequence[_Named]) -> Sequence[Outcome]:
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


def kept_alone(ranking: Ranking, query: Query, most: int) -> Outcome:
    """What the masks leave of the `most` items that a model of the older form gives, without scores."""
    allowed = _allowed(np.array(ranking.item_ids, np.int64), query.masks)
    kept = [item for item, held in zip(ranking.item_ids, allowed.tolist(), strict=True) if held]
    if len(kept) < query.k and len(ranking.item_ids) == most:
        return EngineError(f"too few of the {most} items that the model gives are allowed, and it ranks no candidates")
    return Ranking(kept[: query.k], [])


def outcomes_of(rank: Callable[[], Sequence[Ranking]]) -> Sequence[Outcome]:
    """What a run gave for each row, a faulty one included."""
    try:
        return rank()
    except FaultyRowsError as error:
        return error.outcomes


def _held(places: Iterable[int], ids: Sequence[int], mask: ItemMask) -> Iterator[int]:
    """Those of the places whose items the mask allows. For the few that a row asks for numpy would take longer."""
    bits, items = mask.bits.data, mask.items
    for at in places:
        item = ids[at]
        if item < items and bits[item >> 3] >> (item & 7) & 1:
            yield at


def _allowed(ids: Ids, masks: Sequence[ItemMask]) -> npt.NDArray[np.bool_]:
    """Which of these items all masks allow."""
    allowed = np.ones(len(ids), np.bool_)
    for mask in masks:
        allowed &= mask.holds(ids)
    return allowed


def _merged(outcomes: Sequence[Outcome], k: int) -> Outcome:
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
