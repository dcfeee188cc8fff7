"""Rows that carry masks: exact top-K of the items that their masks allow, and never fewer than there are.

Each row takes the way that its masks make cheap:

- Few items are allowed: exactly these are ranked, as candidates.
- Nearly all are allowed: the row asks for a few more items, in a run with rows that have no masks, and drops those that
  are not allowed. This is exact if k remain, or if the model had no more to give.
- Else the model gives, in that run, the bounds of the row's blocks: see `looks.py`. A model without bounds is asked for
  more items here too.
- A row with fewer left asks again for more. Where the model gives no more, all allowed items are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.domain import Model, Query, Ranking
from recommender.engine.contract import Contract, Feed, Outputs
from recommender.engine.masked.looks import Combined, Look, look_of, needed
from recommender.engine.masked.named import Named, NamedRanking, Outcome, all_allowed, allowed_of, merged
from recommender.errors import EngineError
from recommender.masks import ItemMask

_FEW = 512
"""Allowed items that are ranked as candidates at once: to ask for more and drop some takes longer."""
_SHARE_OF_WALK = 80
"""To rank one allowed item in so many of the catalogue takes as long as a row's part of a walk over all, or less."""
_FEW_BESIDE = 2_048
"""Allowed items that are ranked as candidates at once where other rows have the table walked over anyway."""
_MUCH = 3
"""A row may ask for so many times its k if no batch-mate asks for less: to look at its blocks takes longer."""
_ROWS_BESIDE = 8
"""Rows that a product takes side by side."""
_SPARE = 4
"""A row may ask for one item in this many more than its batch-mates do, who get as many: they hardly notice."""
_AGAIN = 4
"""A row that has too few left asks for so many times as many."""
_ALIKE = 4
"""Rows that ask for this many times the number of others have a separate run: a run gives each row the largest
number."""
_MOST_ASKED = 256
"""Items that a row asks for at most, to drop some, where it may rank exactly the allowed ones instead."""


@dataclass(frozen=True, slots=True)
class _Masked:
    """A row by its place among the queries, and how many items it asks for."""

    place: int
    query: Query
    asked: int

    @property
    def least(self) -> int:
        """How many items the narrowest of its masks allows."""
        return min(mask.count for mask in self.query.masks)

    def kept(self, ranking: Ranking) -> Ranking:
        """The k best of the answer that the masks allow."""
        ids, scores = ranking
        places: Iterable[int] = range(len(ids))
        for mask in self.query.masks:
            places = _held(places, ids, mask)
        kept = list(islice(places, self.query.k))
        return Ranking([ids[at] for at in kept], [scores[at] for at in kept])


@dataclass(frozen=True, slots=True)
class Walked:
    """Result of a run: an outcome for each ranked row, and float32 [rows, blocks] for the bounded ones.

    `bounds` has no rows if the run did not go by blocks.
    """

    outcomes: Sequence[Outcome]
    bounds: npt.NDArray[np.float32]


Walk: TypeAlias = Callable[[Sequence[Query], Sequence[Query]], Walked]
"""Rank the first queries, and give the bounds of blocks for the second, in one run."""


class MaskedRanking:
    """Ranks queries of which some carry masks, with a model that knows no masks.

    `rank` gives the outcomes of queries without masks. `run` runs a feed for a number of recommendations. `padding` is
    that of `Contract.pack`. `walk` gives the bounds of blocks of `block` items, unless that is None.
    """

    def __init__(
        self,
        contract: Contract,
        model: Model,
        rank: Callable[[Sequence[Query]], Sequence[Outcome]],
        run: Callable[[Feed, int], Outputs],
        padding: int | None = None,
        *,
        walk: Walk,
        block: int | None = None,
    ) -> None:
        self._contract = contract
        self._model = model
        self._rank = rank
        self._walk = walk
        self._block = block
        self._named = NamedRanking(contract, run, padding)
        self._names = "candidates" in contract.inputs

    def outcomes(self, queries: Sequence[Query]) -> list[Outcome]:
        """The outcome of each query, in order."""
        found: dict[int, Outcome] = {}
        shared: list[_Masked] = []
        named: list[Named] = []
        bounded: list[_Masked] = []
        few: list[_Masked] = []
        numbers = list(map(self._first_number, queries))
        spare = self._spare(queries, numbers)
        for place, (query, number) in enumerate(zip(queries, numbers, strict=True)):
            asking = _Masked(place, query, min(number, self._most(query)))
            if query.candidates is not None and query.masks:
                ids = np.array(query.candidates, np.int64)
                named.append(Named(place, query, ids[allowed_of(ids, query.masks)]))
            elif query.masks and self._few(query, number):
                few.append(asking)
            elif query.masks and self._block is not None and number > spare:
                bounded.append(asking)
            else:
                shared.append(asking)
        together = [row for row in shared if row.query.candidates is None and row.asked <= spare]
        if self._block is not None and (bounded or (few and together)):
            shared = [row for row in shared if row not in together]
            bounded += [row for row in few if row.least > _FEW_BESIDE]
            few = [row for row in few if row.least <= _FEW_BESIDE]
            # Of what is multiplied side by side, the last few rows cost as much as if they were as many as fit in.
            fillers = few[: -(len(together) + len(bounded)) % _ROWS_BESIDE]
            walked = self._walk(_asked(together), [row.query for row in (*bounded, *fillers)])
            shared += self._settle(together, walked.outcomes, found, named)
            shared += self._look(bounded, walked.bounds, found)
        named += [all_allowed(row.place, row.query, self._contract.items) for row in few]
        while shared:
            most = _ALIKE * min(row.asked for row in shared)
            together = [row for row in shared if row.asked <= most]
            again = [row for row in shared if row.asked > most]
            shared = again + self._settle(together, self._rank(_asked(together)), found, named)
        found.update(self._named.outcomes(named))
        return [found[place] for place in range(len(queries))]

    def _settle(
        self,
        rows: Sequence[_Masked],
        outcomes: Sequence[Outcome],
        found: dict[int, Outcome],
        named: list[Named],
    ) -> list[_Masked]:
        """Put the outcomes of rows into `found`, or rows that must rank all their allowed items into `named`.

        Returns those that ask for more.
        """
        again = []
        for row, outcome in zip(rows, outcomes, strict=True):
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
                named.append(all_allowed(row.place, row.query, self._contract.items))
            else:
                found[row.place] = EngineError(
                    f"too few of the {row.asked} items that the model ranks are allowed, and it was exported "
                    "without the input `candidates`"
                )
        return again

    def _look(
        self, rows: Sequence[_Masked], bounds: npt.NDArray[np.float32], found: dict[int, Outcome]
    ) -> list[_Masked]:
        """Look at the best blocks of rows, and at those that may hold better items.

        Returns the rows whose bounds leave too many items to look at.
        """
        if self._block is None or len(bounds) < len(rows):
            return list(rows)
        looks: list[Look] = []
        again: list[_Masked] = []
        combined: Combined = {}
        for row, own in zip(rows, bounds, strict=False):
            look = look_of(row.place, row.query, own, self._block, self._contract.items, combined)
            if look is None:
                again.append(row)
            else:
                looks.append(look)
        first = self._named.outcomes([look.first for look in looks])
        further = []
        asking = {row.place: row for row in rows}
        for look in looks:
            place, outcome = look.first.place, first[look.first.place]
            found[place] = outcome
            if isinstance(outcome, EngineError):
                continue
            rest = look.rest(outcome)
            if rest is None:
                again.append(asking[place])
            elif len(rest.ids):
                further.append(rest)
        for place, outcome in self._named.outcomes(further).items():
            found[place] = merged([found[place], outcome], asking[place].query.k)
        return again

    def _spare(self, queries: Sequence[Query], numbers: Sequence[int]) -> int:
        """How many items a row may ask for rather than have its blocks looked at; `numbers` is what each expects."""
        whole = [(query.k, number) for query, number in zip(queries, numbers, strict=True) if query.candidates is None]
        little = [k + max(k // _SPARE, 1) for k, number in whole if number <= k + max(k // _SPARE, 1)]
        # Rows that ask for little would get as many items as the others. Without them it takes longer to look.
        return max(little) if little else _MUCH * max([k for k, _ in whole], default=0)

    def _few(self, query: Query, number: int) -> bool:
        """Whether to rank exactly the allowed items of a row that expects to ask for such a number."""
        least = min(mask.count for mask in query.masks)
        if self._block is not None:
            return least <= max(_FEW, self._contract.items // _SHARE_OF_WALK)
        return self._names and (least <= _FEW or number > self._most(query))

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
        return needed(query.k, share)


def _asked(rows: Sequence[_Masked]) -> list[Query]:
    """Queries of the rows for a model without masks."""
    return [row.query._replace(k=row.asked, masks=()) for row in rows]


def kept_alone(ranking: Ranking, query: Query, most: int) -> Outcome:
    """Items that the masks leave of the `most` that a model of the older form returns, without scores."""
    allowed = allowed_of(np.array(ranking.item_ids, np.int64), query.masks)
    kept = [item for item, held in zip(ranking.item_ids, allowed.tolist(), strict=True) if held]
    if len(kept) < query.k and len(ranking.item_ids) == most:
        return EngineError(f"too few of the {most} items that the model gives are allowed, and it ranks no candidates")
    return Ranking(kept[: query.k], [])


def _held(places: Iterable[int], ids: Sequence[int], mask: ItemMask) -> Iterator[int]:
    """The places whose items the mask allows. For the few that a row asks for numpy would be slower."""
    bits, items = mask.bits.data, mask.items
    for at in places:
        item = ids[at]
        if item < items and bits[item >> 3] >> (item & 7) & 1:
            yield at
