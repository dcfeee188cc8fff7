"""Filters as requests bring them, and what the rest of the server needs of the table that they are evaluated over.

Nothing here needs the libraries of `recommender[catalogue]`: a server without a table runs without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from recommender.masks import ItemMask
from recommender.new_items import AttributeValues, NewItems, Truths
from recommender.rules import Values

Scalar: TypeAlias = bool | int | float | str
ParameterValue: TypeAlias = Scalar | tuple[Scalar, ...]
Parameters: TypeAlias = Mapping[str, ParameterValue]


class Filter(NamedTuple):
    """A filter with its parameters: each a name, a type and a value, in the order of their names.

    The types tell filters apart whose parameters Python takes for equal, such as 1 and true.
    """

    text: str
    parameters: tuple[tuple[str, str, ParameterValue], ...] = ()

    @property
    def values(self) -> dict[str, ParameterValue]:
        """The parameters by their names."""
        return {name: value for name, _, value in self.parameters}


class Attributes(Protocol):
    """The attributes of one version's items."""

    @property
    def digest(self) -> str:
        """SHA-256 of the table's file, in lower-case hex."""

    def faults(self, given: AttributeValues) -> Iterator[tuple[str, str]]:
        """Those of an item's attributes that the table does not have, or not of that type, each with why."""

    async def prepare(self, wanted: Filter, deadline: float = math.inf) -> ItemMask:
        """See to it that `mask` has the answer ready, for as long as what this returns is kept.

        `deadline` is a time of `time.monotonic`.

        Raises InvalidRequestError if the filter cannot be evaluated, DeadlineError if that is not done in time,
        BacklogFullError if too many filters wait for their turn.
        """

    def mask(self, wanted: Filter) -> ItemMask:
        """The items that a filter selects and that the version may recommend.

        Takes milliseconds unless it was prepared. Raises InvalidRequestError if the filter cannot be evaluated.
        """

    def learn(self, items: NewItems | None) -> None:
        """Load the attributes that calls gave to the version's own items; they hold for items that the table lacks."""

    def read_new(self, items: NewItems) -> None:
        """Read the attributes of new items, so that `mask_of_new` need not; blocks for milliseconds."""

    def mask_of_new(self, wanted: Filter, items: NewItems) -> Truths:
        """Which new items a filter selects: bool [n]. Raises InvalidRequestError if it cannot be evaluated."""

    def values(self, name: str, new: NewItems | None) -> Values:
        """The values of an attribute, of the version's items and of `new` ones.

        Raises InvalidRequestError, for a field `attribute`, if the table has no such one, or if it is of no type of
        which many items have the same value.
        """


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """The table in use: its `rows` and `bytes`, how often it was `replaced`, and whether it is `stale`.

    It is stale if a newer file was refused. If versions have their own tables, these are added up. `ready` and
    `evaluated` count the filters that were in the cache and those that were not. `evicted` counts those that the cache
    dropped to stay within its limit.
    """

    rows: int
    bytes: int
    replaced: int
    stale: bool
    ready: int
    evaluated: int
    evicted: int


class Tables(Protocol):
    """The table of items of one server, followed on disk."""

    async def start(self) -> None:
        """Read the table, and follow its file until `close`. Raises TableError."""

    async def close(self) -> None:
        """Follow it no longer; also where nothing was started."""

    def attributes(
        self, ids: Callable[[Sequence[str]], Sequence[int | None]], items: int, never: frozenset[int]
    ) -> Attributes:
        """The attributes of a version's items, which follow each new table; blocks for some seconds.

        `ids` gives the item of each key, None for none; `items` is the size of the catalogue. Those in `never` are in
        no mask.
        """

    def statistics(self) -> TableStatistics:
        """The table in use, and the filters up to now."""

    def faults(self, given: AttributeValues) -> Iterator[tuple[str, str]]:
        """Those of an item's attributes that the table in use does not have, or not of that type, each with why."""
