"""Rows with rules: exact, by asking for more until the list is full or nothing is left.

Boosts are monotone: of two items that the same boosts are for, the one with the higher score stays ahead. So a row asks
for more items than it wants, as if it had no boosts. No other item can have a boosted score above what all boosts
that lift make of the last score. If enough are above that, the answer is proven. Else items are divided into groups,
each of those that some boosts are for and no others, by masks, and the best of each group are put together.

Bounds take items in that order. If too few are taken, the row goes on without the items that it has looked at and
those of values of which enough are taken. Each time at least one more is taken, or one value is done with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.domain import Query, Ranking
from recommender.errors import EngineError
from recommender.masks import ItemMask
from recommender.new_items import Beside
from recommender.rules import Boost, Rules, Scores, Taking

Outcome: TypeAlias = Ranking | EngineError
Rank: TypeAlias = Callable[[Sequence[Query]], Sequence[Outcome]]

_FIRST = 4
"""A row with bounds looks at so many times as many items as it wants, at first."""
_AGAIN = 4
_MOST_LOOKED_AT = 4_096
"""Items that a row with bounds looks at in one go at most, if it does not want more."""
_OVER = 256
"""A row with boosts asks for so many more items than it looks at."""
_ROWS_AT_ONCE = 64
"""Rows that groups are ranked in at a time: each has a mask of a bit an item."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class _Row:
    """A row with rules, by its place among the queries; `query` has what is left to look at, `wanted` of it now."""

    place: int
    query: Query
    rules: Rules
    wanted: int
    taking: Taking


@dataclass(frozen=True, slots=True)
class _Boosted:
    """Items with the scores of the model and the boosted ones."""

    ids: npt.NDArray[np.int64]
    own: Scores
    scores: Scores

    def best(self, number: int) -> Ranking:
        """The best by their boosted scores, of equal ones by their own, then by the id."""
        order = np.lexsort((self.ids, -self.own, -self.scores))[:number]
        told = np.clip(self.scores[order], -_LARGEST, _LARGEST).astype(np.float32)
        return Ranking(self.ids[order].tolist(), told.tolist())


def ranked_by_rules(queries: Sequence[Query], rank: Rank, items: int) -> list[Outcome]:
    """The outcomes of queries of which some have rules; `rank` gives those of queries without, from so many items."""
    found: dict[int, Outcome] = {}
    plain = [place for place, query in enumerate(queries) if query.rules is None]
    if plain:
        found.update(zip(plain, rank([queries[place] for place in plain]), strict=True))
    rows = [
        _Row(
            place,
            query._replace(rules=None),
            query.rules,
            query.k * _FIRST if query.rules.bounds else query.k,
            Taking(query.k, query.rules.bounds),
        )
        for place, query in enumerate(queries)
        if query.rules is not None
    ]
    while rows:
        again = []
        for row, outcome in zip(rows, _ranked(rows, rank), strict=True):
            if isinstance(outcome, EngineError):
                found[row.place] = outcome
                continue
            row.taking.take(outcome.item_ids, outcome.scores)
            if row.taking.full or len(outcome.item_ids) < row.wanted or not _go_on(row, outcome.item_ids, items):
                found[row.place] = Ranking(row.taking.ids, row.taking.scores)
            else:
                again.append(row)
        rows = again
    return [found[place] for place in range(len(queries))]


def _go_on(row: _Row, seen: Sequence[int], items: int) -> bool:
    """Leave out the items that a row has seen and that its bounds exclude; False if nothing is left."""
    query = row.query
    allowed = np.ones(items, np.bool_)
    beside = query.beside
    new = None
    if beside is not None:
        new = np.ones(len(beside.items), np.bool_) if beside.allowed is None else beside.allowed.copy()
        new &= ~beside.items.among(seen)
    for barred, barred_new in row.taking.barred():
        allowed &= ~barred
        if new is not None and barred_new is not None:
            new &= ~barred_new
    ids = np.array(seen, np.int64)
    allowed[ids[ids < items]] = False
    for mask in query.masks:
        own = np.unpackbits(mask.bits, count=min(mask.items, items), bitorder="little").view(np.bool_)
        allowed[: len(own)] &= own
        allowed[len(own) :] = False
    row.query = query._replace(
        masks=(ItemMask(allowed),),
        beside=None if beside is None or new is None or not new.any() else Beside(beside.items, new),
    )
    row.wanted = max(min(row.wanted * _AGAIN, _MOST_LOOKED_AT), row.taking.k)
    return bool(allowed.any()) or row.query.beside is not None


def _ranked(rows: Sequence[_Row], rank: Rank) -> list[Outcome]:
    """The best items of each row by their boosted scores, as many as it wants now."""
    asked = [row.query._replace(k=row.wanted + (_OVER if row.rules.boosts else 0)) for row in rows]
    outcomes: list[Outcome] = []
    unproven = []
    for place, (row, query, outcome) in enumerate(zip(rows, asked, rank(asked), strict=True)):
        if isinstance(outcome, Ranking) and row.rules.boosts:
            boosted = _boosted(row, outcome)
            if len(outcome.item_ids) == query.k and not _proven(boosted, row, outcome.scores[-1]):
                unproven.append(place)
            outcomes.append(boosted.best(row.wanted))
        else:
            outcomes.append(outcome)
    for place, exact in zip(unproven, _by_groups([rows[place] for place in unproven], rank), strict=True):
        outcomes[place] = exact
    return outcomes


def _boosted(row: _Row, ranking: Ranking) -> _Boosted:
    """Items that the model ranked, with their boosts."""
    ids, own = np.array(ranking.item_ids, np.int64), np.array(ranking.scores, np.float64)
    new = None if row.query.beside is None else row.query.beside.items
    scores = own
    for boost in row.rules.boosts:
        scores = np.where(boost.holds(ids, new), boost.applied(scores), scores)
    return _Boosted(ids, own, scores)


def _proven(boosted: _Boosted, row: _Row, last: float) -> bool:
    """Whether no item that scores `last` or less can be among those that the row wants."""
    return bool(np.partition(boosted.scores, -row.wanted)[-row.wanted] > row.rules.highest(last))


def _by_groups(rows: Sequence[_Row], rank: Rank) -> Iterator[Outcome]:
    """The best items of each row, as `_ranked` gives them, from groups that the same boosts are for."""
    waiting: list[list[tuple[Query, tuple[Boost, ...]]]] = []
    for number, row in enumerate(rows, 1):
        waiting.append(list(_groups(row)))
        if sum(map(len, waiting)) < _ROWS_AT_ONCE and number < len(rows):
            continue
        asked = [query for groups in waiting for query, _ in groups]
        outcomes = iter(rank(asked) if asked else ())
        for groups, each in zip(waiting, rows[number - len(waiting) : number], strict=True):
            yield _together([boosts for _, boosts in groups], [next(outcomes) for _ in groups], each.wanted)
        waiting = []


def _groups(row: _Row) -> Iterator[tuple[Query, tuple[Boost, ...]]]:
    """The parts of a row's items that different boosts are for, none of them surely empty."""
    query, boosts = row.query, row.rules.boosts
    for chosen in product((True, False), repeat=len(boosts)):
        inside = tuple(compress(boosts, chosen))
        outside = tuple(boost for boost, is_inside in zip(boosts, chosen, strict=True) if not is_inside)
        mask = ItemMask.combined([boost.mask for boost in inside], [boost.mask for boost in outside])
        beside = query.beside
        if beside is not None:
            allowed = np.ones(len(beside.items), np.bool_) if beside.allowed is None else beside.allowed.copy()
            for boost, is_inside in zip(boosts, chosen, strict=True):
                if boost.new is not None:
                    allowed &= boost.new if is_inside else ~boost.new
            beside = Beside(beside.items, allowed) if allowed.any() else None
        if mask.count or beside is not None:
            yield query._replace(k=row.wanted, masks=(*query.masks, mask), beside=beside), inside


def _together(boosts: Sequence[tuple[Boost, ...]], outcomes: Sequence[Outcome], wanted: int) -> Outcome:
    """The best of all groups by their boosted scores; the first fault if there is one."""
    parts: list[_Boosted] = []
    for own, outcome in zip(boosts, outcomes, strict=True):
        if isinstance(outcome, EngineError):
            return outcome
        before = scores = np.array(outcome.scores, np.float64)
        for boost in own:
            scores = boost.applied(scores)
        parts.append(_Boosted(np.array(outcome.item_ids, np.int64), before, scores))
    if not parts:
        return Ranking([], [])
    columns = ([part.ids for part in parts], [part.own for part in parts], [part.scores for part in parts])
    return _Boosted(np.concatenate(columns[0]), np.concatenate(columns[1]), np.concatenate(columns[2])).best(wanted)
