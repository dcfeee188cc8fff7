"""Ways of rows with masks: which is the quickest for each row of a batch, by what the ways cost.

All rows that ask for items, have blocks looked at or have no masks share one run, the walk over the table. It gives
each row as many items as the row that asks for the most. So what a row should do depends on its batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from operator import itemgetter
from typing import NamedTuple

from recommender.batching.cost import Cost
from recommender.domain import Model
from recommender.engine.masked.looks import looked_at, needed

_ROWS_BESIDE = 8
"""Rows that a product takes side by side: the last few cost as much as if they were as many as fit in."""
_MOST_ASKED = 256
"""Items that a row asks for at most, to drop some, where it may rank exactly the allowed ones instead."""


class Way(Enum):
    """How a row finds its best allowed items."""

    NAME = auto()
    """It ranks exactly the allowed ones."""
    ASK = auto()
    """It asks for more items than it wants, and drops those that are not allowed."""
    LOOK = auto()
    """It looks at the allowed items of its best blocks: see `looks.py`."""


class Wish(NamedTuple):
    """Items that each way would take for a row: those to ask for, to rank exactly, and to look at.

    `asked` is None if the model does not give as many, `looked` if it gives no bounds.
    """

    asked: int | None
    allowed: int
    looked: float | None

    @classmethod
    def of(cls, k: int, share: float, allowed: int, *, most: int, block: int | None) -> Wish:
        """That of a row of which a `share` of the items is allowed, `allowed` at most.

        The model gives `most` items, and bounds of blocks of `block` items, unless that is None.
        """
        if not share:
            return cls(None, allowed, None)
        number = needed(k, share)
        looked = None if block is None else min(looked_at(k, share, block), allowed)
        return cls(number if number <= most else None, allowed, looked)


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of a model on this machine.

    `walk` is that of a run over the whole catalogue; its cells are rows × the most items that one asks for. `named` is
    that of rows that rank exactly the items they name, and `looked` that of looking at blocks, in addition to the walk.
    Their cells are items.
    """

    walk: Cost
    named: Cost
    looked: Cost

    @classmethod
    def supposed(cls, items: int) -> Costs:
        """Those of a catalogue of this size, before anything is measured: ratios of 2 CPUs at 1,000,000 × 64."""
        row, item = items * 5e-10, 4e-8
        return cls(Cost(10 * row, row, row / 100), Cost(1e-4, 1e-5, item), Cost(0.0, 1e-4, item))


def quickest_ways(wishes: Sequence[Wish], others: int, k: int, costs: Costs) -> list[Way]:
    """The way of each row with masks, in a batch with `others` rows without; these want `k` items at most."""
    walk, named, looked = costs.walk, costs.named, costs.looked
    alike = Counter(wishes)
    started = named.fixed / max(len(wishes), 1)
    naming = {wish: started + named.per_row + named.per_cell * wish.allowed for wish in alike}
    looking = {
        wish: math.inf if wish.looked is None else looked.per_row + looked.per_cell * wish.looked for wish in alike
    }
    apart = {wish: min(naming[wish], looking[wish] + walk.per_row) for wish in alike}
    ways = {wish: Way.NAME if naming[wish] == apart[wish] else Way.LOOK for wish in alike}
    left = sum(apart[wish] * number for wish, number in alike.items())
    alone = math.inf if others else sum(naming[wish] * number for wish, number in alike.items())
    # If a row asks for so many items, those that need fewer ask as well.
    order = sorted([(wish.asked, wish) for wish in alike if wish.asked is not None], key=itemgetter(0))
    rows, most, least, asking = others, k if others else 0, walk.seconds(others, others * k) + left, 0
    for count, (asked, wish) in enumerate(order, 1):
        rows, most, left = rows + alike[wish], max(most, asked), left - apart[wish] * alike[wish]
        seconds = walk.seconds(rows, rows * most) + left
        if seconds < least:
            least, asking = seconds, count
    if alone <= least:
        return [Way.NAME] * len(wishes)
    ways |= {wish: Way.ASK for _, wish in order[:asking]}
    room = filling(others + sum(number for wish, number in alike.items() if ways[wish] is not Way.NAME))
    free: dict[Wish, int] = {}
    for wish in sorted(alike, key=lambda wish: looking[wish] - naming[wish]) if room else ():
        if ways[wish] is Way.NAME and looking[wish] < naming[wish]:
            free[wish] = min(room, alike[wish])
            room -= free[wish]
    chosen = []
    for wish in wishes:
        looks = free.get(wish, 0) > 0
        if looks:
            free[wish] -= 1
        chosen.append(Way.LOOK if looks else ways[wish])
    return chosen


def filling(rows: int) -> int:
    """How many more rows a product takes beside so many, at no cost."""
    return -rows % _ROWS_BESIDE


def most_asked(model: Model, k: int) -> int:
    """How many items a row that wants `k` may ask for at most, of a model that ranks candidates too."""
    return max(min(model.max_k, _MOST_ASKED), k)
