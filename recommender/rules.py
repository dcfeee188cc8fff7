"""Rules of a request: boosts, which change scores before items are chosen, and bounds for items that are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.masks import ItemMask
from recommender.new_items import NewItems, Truths

Scores: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.int64]


class Boost(NamedTuple):
    """Changes the scores of the items that `mask` allows, and of the new items `new` [n]: never their order."""

    mask: ItemMask
    new: Truths | None
    factor: float = 1.0
    addend: float = 0.0

    def applied(self, scores: Scores) -> Scores:
        """The changed scores: those below 0 are divided by the factor, so a factor above 1 always lifts."""
        return np.where(scores < 0, scores / self.factor, scores * self.factor) + self.addend

    def holds(self, ids: Ids, new: NewItems | None) -> Truths:
        """Which of these items it applies to; those that the mask lacks are looked up in `new`."""
        own = self.mask.holds(ids)
        if new is None or self.new is None:
            return own
        beyond = np.flatnonzero(ids >= new.ids[0])
        own[beyond] = self.new[np.searchsorted(new.ids, ids[beyond])]
        return own


class Values(Protocol):
    """The values of one attribute, of a version's items and of its new ones."""

    def of(self, ids: Sequence[int]) -> Sequence[Hashable]:
        """The value of each of these items, None for none."""

    def having(self, values: Collection[Hashable]) -> tuple[Truths, Truths | None]:
        """Which items have one of these values: bool [items], and of the new ones, if there are any, bool [n]."""


class Bound(NamedTuple):
    """At most `most` items of one value."""

    most: int
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """A request's rules for its list, besides the items that may be on it.

    Items are ordered by their boosted scores, equal ones by the model's score, then by the id. Going through all of
    them in this order, an item is taken unless as many with its value as one of `bounds` allows were taken before.
    """

    boosts: tuple[Boost, ...] = ()
    bounds: tuple[Bound, ...] = ()

    def highest(self, score: float) -> float:
        """No item that scores this or less has a larger boosted score."""
        highest = np.array([score], np.float64)
        for boost in self.boosts:
            highest = np.maximum(highest, boost.applied(highest))
        return float(highest[0])


@dataclass(slots=True)
class Taking:
    """Takes the first `k` items that bounds allow, from items that come in order."""

    k: int
    bounds: Sequence[Bound]
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    _counts: list[Counter[Hashable]] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = [Counter() for _ in self.bounds]

    @property
    def full(self) -> bool:
        """Whether all are taken."""
        return len(self.ids) == self.k

    def take(self, ids: Sequence[int], scores: Sequence[float] = ()) -> None:
        """Look at the next items; a fallback list has no scores."""
        values = [bound.values.of(ids) for bound in self.bounds]
        for place, item in enumerate(ids):
            if self.full:
                return
            own = [of_all[place] for of_all in values]
            if any(
                value is not None and count[value] >= bound.most
                for value, count, bound in zip(own, self._counts, self.bounds, strict=True)
            ):
                continue
            self.ids.append(item)
            self.scores += scores[place : place + 1]
            for value, count in zip(own, self._counts, strict=True):
                count[value] += 1

    def barred(self) -> list[tuple[Truths, Truths | None]]:
        """The items that no bound lets in any longer, by each of the bounds; as of `Values.having`."""
        found = []
        for count, bound in zip(self._counts, self.bounds, strict=True):
            gone = [value for value, number in count.items() if value is not None and number >= bound.most]
            if gone:
                found.append(bound.values.having(gone))
        return found
