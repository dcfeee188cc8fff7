"""Rows that carry masks: exact top-K of the items that their masks allow, and never fewer than there are.

Each row takes the way that is the quickest for it in its batch, by what was measured: see `ways.py`.

- It ranks exactly the allowed items, as candidates.
- It asks for some more items, in a run with rows that have no masks, and drops those that are not allowed. This is
  exact if k remain, or if the model had no more to give. A row with fewer left asks again for more. Where the model
  gives no more, all allowed items are ranked.
- The model gives, in that run, the bounds of the row's blocks: see `looks.py`.
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
from recommender.engine.masked.looks import Combined, Look, look_of
from recommender.engine.masked.named import Named, NamedRanking, Outcome, all_allowed, allowed_of, merged
from recommender.engine.masked.ways import Costs, Way, Wish, filling, most_asked, quickest_ways
from recommender.errors import EngineError
from recommender.masks import ItemMask

_AGAIN = 4
"""A row that has too few left asks for so many times as many."""
_ALIKE = 4
"""Rows that ask for this many times the number of others have a separate run: a run gives each row the largest
number."""


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
    that of `Contract.pack`. `walk` gives the bounds of blocks of `block` items, unless that is None. The ways are
    chosen by their `costs`.
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
        costs: Costs,
    ) -> None:
        self._contract = contract
        self._model = model
        self._rank = rank
        self._walk = walk
        self._block = block
        self._costs = costs
        self._named = NamedRanking(contract, run, padding)
        self._names = "candidates" in contract.inputs

    def outcomes(self, queries: Sequence[Query]) -> list[Outcome]:
        """The outcome of each query, in order."""
        found: dict[int, Outcome] = {}
        together: list[_Masked] = []
        shared: list[_Masked] = []
        named: list[Named] = []
        masked: list[_Masked] = []
        for place, query in enumerate(queries):
            if query.candidates is None:
                (masked if query.masks else together).append(_Masked(place, query, query.k))
            elif query.masks:
                ids = np.array(query.candidates, np.int64)
                named.append(Named(place, query, ids[allowed_of(ids, query.masks)]))
            else:
                shared.append(_Masked(place, query, query.k))
        few, asking, bounded = self._by_way(masked, together)
        together += asking
        if self._block is not None and (bounded or (few and together)):
            # The rows that rank few items fill the places of a product that would stay empty.
            fillers = few[: filling(len(together) + len(bounded))]
            walked = self._walk(_asked(together), [row.query for row in (*bounded, *fillers)])
            shared += self._settle(together, walked.outcomes, found, named)
            shared += self._look(bounded, walked.bounds, found)
        else:
            shared += together
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
            elif row.asked < self._most(row.query.k):
                again.append(_Masked(row.place, row.query, min(row.asked * _AGAIN, self._most(row.query.k))))
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

    def _by_way(
        self, masked: Sequence[_Masked], others: Sequence[_Masked]
    ) -> tuple[list[_Masked], list[_Masked], list[_Masked]]:
        """The rows with masks that rank exactly what these allow, that ask for more, and that look at blocks."""
        kinds = [(row.query.masks, row.query.k) for row in masked]
        wish_of = {kind: self._wish(*kind) for kind in set(kinds)}
        wishes = [wish_of[kind] for kind in kinds]
        if self._names:
            ways = quickest_ways(wishes, len(others), max([row.query.k for row in others], default=0), self._costs)
        else:
            ways = [Way.ASK] * len(masked)
        rows: dict[Way, list[_Masked]] = {way: [] for way in Way}
        for row, wish, way in zip(masked, wishes, ways, strict=True):
            asked = self._most(row.query.k) if wish.asked is None else wish.asked
            rows[way].append(_Masked(row.place, row.query, asked))
        return rows[Way.NAME], rows[Way.ASK], rows[Way.LOOK]

    def _wish(self, masks: Sequence[ItemMask], k: int) -> Wish:
        """The wish of a row with these masks, taken to be independent of each other."""
        share = math.prod(mask.count / mask.items for mask in masks if mask.items)
        return Wish.of(k, share, min(mask.count for mask in masks), most=self._most(k), block=self._block)

    def _most(self, k: int) -> int:
        return most_asked(self._model, k) if self._names else self._model.max_k


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
