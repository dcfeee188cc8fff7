"""Costs of the ways of rows with masks, measured for a version on this machine before it serves.

Batches are timed in turns, so that a machine with a drifting speed favours none of them. Two that only differ in rows,
or in items, tell what a row or an item takes. If noise hides the cost of an item, that has a lower limit: a row that
asks for items too lightly would delay its whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recommender.batching.cost import Cost
from recommender.domain import Model, Query
from recommender.engine.coarse import quickest
from recommender.engine.masked.looks import look_of
from recommender.engine.masked.ways import Costs, Way, Wish, most_asked, quickest_ways
from recommender.masks import ItemMask

NAMING = Costs(walk=Cost(1.0, 1.0), named=Cost(0.0), looked=Cost(1.0, 1.0))
"""Costs by which every row ranks exactly what its masks allow."""
_ROWS = 64
"""Rows of the largest batch that is measured."""
_FEW_ROWS = 4
_LENGTH = 32
"""Items of a history, which a row that looks at blocks has encoded twice."""
_TIMES = 4
"""So many times the default k are asked for, to see what asking costs."""
_MOST_CELLS = 1_600
"""Items that the rows of such a run ask for at most: it bounds the memory that they take."""
_SHARE = 8
"""One item in so many is named, but no more than `_MOST_NAMED`."""
_MOST_NAMED = 8_192
_TENTH = 10
"""One item in so many is allowed where blocks are looked at."""
_LEAST_SHARE = 8
"""An item costs at least one part in so many of what the run with the most items took for each."""
_ROUNDS = 4
_ENOUGH_SECONDS = 1.0
"""After so long no more rounds, if there were two: what takes long is measured well, and a start waits for it."""
_STEPS = 24


@dataclass(slots=True)
class _Timed:
    """A batch, its number of cells, and the shortest of its runs."""

    queries: list[Query]
    cells: int
    seconds: float = math.inf


def measured(
    rank: Callable[[Sequence[Query]], object], model: Model, items: int, block: int | None, max_batch_size: int
) -> Costs:
    """The costs of the ways of a model of so many `items`; `block` is that of `MaskedRanking`.

    `rank` ranks seven batches of up to `_ROWS` rows, `_ROUNDS` times or twice if that takes long, by the costs
    `NAMING`. Raises what it raises.
    """
    rows, few, k = min(max_batch_size, _ROWS), min(max_batch_size, _FEW_ROWS), model.default_k
    known = model.readable or 1
    # From all over the catalogue: a batch of one user often would be as hard or as easy as that user.
    places = [place * known // rows for place in range(rows)]
    length = min(model.longest_history or _LENGTH, _LENGTH)
    plain = [Query((model.some_item if place == model.padding_id else place,) * length, k) for place in places]
    more = min(_TIMES * k, most_asked(model, k), items)
    some = min(rows, max(_MOST_CELLS // more, 1))
    asking = [
        _Timed([query._replace(k=each) for query in plain[:number]], number * each)
        for number, each in ((1, k), (rows, k), (some, k), (some, more))
    ]
    many = max(min(items // _SHARE, _MOST_NAMED), 1)
    little = max(many // 16, 1)
    naming = [
        _Timed(each, sum(query.masks[0].count for query in each))
        for each in (_masked(plain[:number], items, most) for number, most in ((1, little), (few, little), (few, many)))
    ]
    one, less, most = naming
    _time(rank, [*asking, *naming])
    walk, named = _cost(*asking), _cost(one, less, less, most)
    row = 0.0 if block is None else _seconds_of_look(plain[0], items, block)
    return Costs(walk, named, Cost(0.0, row + named.per_row, named.per_cell))


def thresholds(costs: Costs, model: Model, items: int, block: int | None) -> tuple[int, float]:
    """How many allowed items a row ranks exactly, at most, and from which share of the catalogue on it asks for more.

    They are those of a batch of `_ROWS` rows, each with a filter of such a share and the default k.
    """

    def way(share: float) -> Way:
        k = model.default_k
        wish = Wish.of(k, share, round(share * items), most=most_asked(model, k), block=block)
        return quickest_ways([wish] * _ROWS, 0, 0, costs)[0]

    exact, asked = (0.0, 1.0), (0.0, 1.0)
    for _ in range(_STEPS):
        middle = sum(exact) / 2
        exact = (middle, exact[1]) if way(middle) is Way.NAME else (exact[0], middle)
        middle = sum(asked) / 2
        asked = (asked[0], middle) if way(middle) is Way.ASK else (middle, asked[1])
    return round(exact[1] * items), asked[1]


def _masked(queries: Sequence[Query], items: int, most: int) -> list[Query]:
    """The queries with masks that allow about so many items each, drawn from all over the catalogue."""
    random = np.random.default_rng(0)
    masked = []
    for query in queries:
        allowed = np.zeros(items, np.bool_)
        allowed[random.integers(0, items, most)] = True
        masked.append(query._replace(masks=(ItemMask(allowed),)))
    return masked


def _time(rank: Callable[[Sequence[Query]], object], batches: Sequence[_Timed]) -> None:
    """Run the batches in turns; the first runs, which allocate, do not count."""
    started = time.perf_counter()
    for number in range(_ROUNDS):
        for batch in batches:
            begun = time.perf_counter()
            rank(batch.queries)
            if number:
                batch.seconds = min(batch.seconds, time.perf_counter() - begun)
        if number and time.perf_counter() - started > _ENOUGH_SECONDS:
            break


def _cost(one: _Timed, rows: _Timed, less: _Timed, more: _Timed) -> Cost:
    """The cost by one row and many, and by fewer and more items for as many rows."""
    per_cell = per_row = 0.0
    if more.cells > less.cells:
        per_cell = (more.seconds - less.seconds) / (more.cells - less.cells)
        per_cell = max(per_cell, more.seconds / (_LEAST_SHARE * more.cells))
    if len(rows.queries) > 1:
        per_row = (rows.seconds - one.seconds - per_cell * (rows.cells - one.cells)) / (len(rows.queries) - 1)
    per_row = max(per_row, 0.0)
    return Cost(max(one.seconds - per_row - per_cell * one.cells, 0.0), per_row, per_cell)


def _seconds_of_look(query: Query, items: int, block: int) -> float:
    """How long a row takes to choose its blocks."""
    bounds = np.random.default_rng(0).standard_normal(items // block, np.float32)
    tenth = query._replace(masks=(ItemMask(np.arange(items) % _TENTH == 0),))
    (seconds,) = quickest(lambda query: look_of(0, query, bounds, block, items, {}), [tenth])
    return seconds
