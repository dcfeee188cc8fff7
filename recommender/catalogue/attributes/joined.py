"""A version's items joined with the rows of the table, and the masks that filters make of them."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from recommender.catalogue.attributes.added import added_table, faults_of
from recommender.catalogue.attributes.cache import Key, MaskCache
from recommender.catalogue.attributes.evaluating import evaluate, nearest
from recommender.catalogue.attributes.filters import Filter
from recommender.catalogue.attributes.syntax import parse
from recommender.catalogue.attributes.table import ItemTable, Lists
from recommender.catalogue.attributes.values import ColumnValues
from recommender.errors import BacklogFullError, DeadlineError, InvalidRequestError, Violation, quoted
from recommender.masks import ItemMask
from recommender.new_items import AttributeValues, NewItems, Truths
from recommender.rules import Values
from recommender.threads import in_background

_AT_ONCE = 2
_MOST_WAITING = 1024
_RETRY_SECONDS = 1.0
_KEYS_AT_ONCE = 10_000
_MOST_OF_NEW = 64
"""Number of filters whose results are kept for one state of the new items."""

_parsed = lru_cache(maxsize=256)(parse)


@dataclass(frozen=True, slots=True)
class Current:
    """A table that is in use, and how many were before it."""

    table: ItemTable
    number: int


@dataclass(frozen=True, slots=True)
class _New:
    """The attributes of new items as a table like the one in use, and what filters select of them."""

    current: Current
    table: ItemTable
    selected: dict[Filter, Truths] = field(default_factory=dict)


@dataclass(slots=True)
class Workshop:
    """The shared parts of all versions' attributes: the `cache`, and the queue of filter evaluations.

    `ready` and `evaluated` count filters that were in the cache and those that were not.
    """

    cache: MaskCache
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    pending: dict[Key, asyncio.Task[ItemMask]] = field(default_factory=dict)
    ready: int = 0
    evaluated: int = 0


class JoinedAttributes:
    """The `Attributes` of one version, numbered by `number`; the other arguments are those of `Tables.attributes`."""

    def __init__(
        self,
        workshop: Workshop,
        number: int,
        ids: Callable[[Sequence[str]], Sequence[int | None]],
        items: int,
        never: frozenset[int],
    ) -> None:
        self._workshop = workshop
        self._number = number
        self._ids = ids
        self._items = items
        self._held: weakref.WeakValueDictionary[Filter, ItemMask] = weakref.WeakValueDictionary()
        self._never = np.array(sorted(item for item in never if item < items), np.int64)
        self._joined: tuple[Current, npt.NDArray[np.int32]] | None = None
        self._learned: NewItems | None = None
        self._learnings = 0
        self._new: weakref.WeakKeyDictionary[NewItems, _New] = weakref.WeakKeyDictionary()

    def uses(self, current: Current) -> bool:
        """Whether it is joined with this table."""
        return self._joined is not None and self._joined[0] is current

    def join(self, current: Current) -> None:
        """Find the row of each item, and use this table from now on; blocks for seconds if it is large."""
        table = current.table
        rows = np.full(self._items, len(table), np.int32)  # the row of which nothing is known
        for start in range(0, len(table), _KEYS_AT_ONCE):
            keys = table.keys.slice(start, _KEYS_AT_ONCE)
            if table.by_id:
                ids = keys.to_numpy()
            else:
                found = self._ids(keys.to_pylist())
                ids = np.array([-1 if item is None else item for item in found], np.int64)
            known = np.flatnonzero((ids >= 0) & (ids < self._items))
            rows[ids[known]] = start + known
        self._joined = (current, rows)

    @property
    def table(self) -> ItemTable:
        """The table that it is joined with."""
        return self._current()[0].table

    @property
    def digest(self) -> str:
        """The digest of that table; see `Attributes`."""
        return self.table.digest

    def faults(self, given: AttributeValues) -> Iterator[tuple[str, str]]:
        """An item's attributes that the table cannot hold; see `Attributes`."""
        return faults_of(given, self.table)

    def mask(self, wanted: Filter) -> ItemMask:
        """The items that a filter selects and that the version may recommend; see `Attributes`."""
        key, joined = self._key(wanted)
        mask = self._workshop.cache.get(key)
        if mask is None:  # there are many filters, or another table since it was prepared
            mask = self._held.get(wanted)
        return self._evaluated(key, joined) if mask is None else mask

    async def prepare(self, wanted: Filter, deadline: float = math.inf) -> ItemMask:
        """See to it that `mask` has the answer ready; see `Attributes`."""
        mask = self._held[wanted] = await self._prepared(wanted, deadline)
        return mask

    async def _prepared(self, wanted: Filter, deadline: float) -> ItemMask:
        workshop = self._workshop
        key, joined = self._key(wanted)
        mask = workshop.cache.get(key)
        if mask is not None:
            workshop.ready += 1
            return mask
        task = workshop.pending.get(key)
        if task is None:
            if len(workshop.pending) >= _MOST_WAITING:
                raise BacklogFullError(_MOST_WAITING, _RETRY_SECONDS)
            task = workshop.pending[key] = asyncio.create_task(self._evaluate(key, joined))
            task.add_done_callback(lambda done: self._settle(key, done))
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise DeadlineError("the deadline passed while the filter was evaluated") from error

    def learn(self, items: NewItems | None) -> None:
        """Load the attributes that calls gave to the version's own items; see `Attributes`."""
        if items is not self._learned:
            self._learned = items
            self._learnings += 1  # what filters selected before is not found any longer

    def read_new(self, items: NewItems) -> None:
        """Read the attributes of new items; see `Attributes`."""
        self._of_new(items)

    def mask_of_new(self, wanted: Filter, items: NewItems) -> Truths:
        """Which new items a filter selects; see `Attributes`."""
        new = self._of_new(items)
        selected = new.selected.get(wanted)
        if selected is None:
            selected = evaluate(_parsed(wanted.text), new.table, wanted.values)[: len(items)]
            if len(new.selected) >= _MOST_OF_NEW:
                new.selected.clear()
            new.selected[wanted] = selected
        return selected

    def values(self, name: str, new: NewItems | None) -> Values:
        """The values of an attribute; see `Attributes`."""
        current, rows = self._current()
        column = current.table.columns.get(name)
        if column is None:
            why = f"the table of items has no attribute {quoted(name)}{nearest(name, current.table.columns)}"
            raise InvalidRequestError(Violation("attribute", why))
        if isinstance(column, Lists) or column.kind not in ("string", "int", "bool"):
            raise InvalidRequestError(
                Violation("attribute", f"{quoted(name)} is a {column.kind}, and must be a string, an int or a bool")
            )
        of_new = None if new is None else self._of_new(new).table.columns[name]
        told = self._learned
        of_told = None if told is None else self._of_new(told).table.columns[name]
        if told is not None and not isinstance(of_told, Lists | None):
            lacking = np.flatnonzero(rows[told.ids] == len(current.table))
            return ColumnValues(
                column, rows, None if isinstance(of_new, Lists) else of_new, new, of_told, told.ids[lacking], lacking
            )
        return ColumnValues(column, rows, None if isinstance(of_new, Lists) else of_new, new)

    def _of_new(self, items: NewItems) -> _New:
        current = self._current()[0]
        new = self._new.get(items)
        if new is None or new.current is not current:
            new = self._new[items] = _New(current, added_table(items.attributes, current.table))
        return new

    def _current(self) -> tuple[Current, npt.NDArray[np.int32]]:
        if self._joined is None:
            raise RuntimeError("a version is joined with a table before it serves")
        return self._joined

    def _key(self, wanted: Filter) -> tuple[Key, tuple[Current, npt.NDArray[np.int32]]]:
        joined = self._current()
        return (self._number, joined[0].number + (self._learnings << 32), wanted), joined

    async def _evaluate(self, key: Key, joined: tuple[Current, npt.NDArray[np.int32]]) -> ItemMask:
        async with self._workshop.turns:
            self._workshop.evaluated += 1
            return await in_background(self._evaluated, key, joined)

    def _evaluated(self, key: Key, joined: tuple[Current, npt.NDArray[np.int32]]) -> ItemMask:
        """The mask of a filter, evaluated and put into the cache; blocks."""
        current, rows = joined
        wanted = key[2]
        selected = evaluate(_parsed(wanted.text), current.table, wanted.values)[rows]
        if (told := self._learned) is not None:
            lacking = rows[told.ids] == len(current.table)
            selected[told.ids[lacking]] = self.mask_of_new(wanted, told)[lacking]
        selected[self._never] = False
        mask = ItemMask(selected)
        self._workshop.cache.put(key, mask)
        return mask

    def _settle(self, key: Key, done: asyncio.Task[ItemMask]) -> None:
        del self._workshop.pending[key]
        if not done.cancelled():
            done.exception()  # read, so that asyncio logs no error if every caller has left
