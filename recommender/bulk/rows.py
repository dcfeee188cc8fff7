"""Read the rows of a table as the service reads requests: most at once as arrays, the others one by one.

A row is plain if all its items are known and its lists are within the limits, as `Asked.for_version` has it. Every
other row becomes a request and goes the way of one: so its answer, and the sentence of its error, is the service's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recommender.api.catalogue import attributes_of
from recommender.api.queries import Limits, Reader
from recommender.bulk.columns import FAULT, FEATURE, Columns
from recommender.bulk.errors import BulkError
from recommender.bulk.lists import NOBODY, Flags, Ints, Lists, ids_of_keys, lists_of, no_lists, numbers
from recommender.bulk.requests import request_of
from recommender.domain import Query, Ranking
from recommender.errors import InvalidRequestError, RecommenderError
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.routing.answering import Remarks

_IDS_END = 1 << 31
"""Ids travel as int32."""
_DIGITS = 19
_AT_ONCE = 256
"""Rows that stand as Python's objects at once."""
_MOST_LIMIT = 10_000
"""The largest limit that the proto allows."""


class FaultyLineError(RecommenderError):
    """A line of a text file that is no row."""


@dataclass(slots=True)
class Plain:
    """The plain rows: `places` in their table, and for each its history, limit `k`, exclusions and user."""

    places: Ints
    histories: Lists
    ks: Ints
    excluded: Lists
    seen: Lists
    """The whole history where that is excluded too; else empty lists."""
    users: Ints
    recommendable: int
    """Items that are not below it are in no answer, so they are not excluded."""
    masks: tuple[ItemMask, ...] = ()
    """Those of the version."""

    def take(self, rows: Ints | slice) -> Plain:
        """Some rows, in this order."""
        return Plain(
            self.places[rows],
            self.histories.take(rows),
            self.ks[rows],
            self.excluded.take(rows),
            self.seen.take(rows),
            self.users[rows],
            self.recommendable,
            self.masks,
        )


@dataclass(slots=True)
class Rows:
    """The rows of a table as they were read, by their places: each is plain, a query, finished or an error."""

    count: int
    user: pa.Array | None
    plain: Plain
    queries: dict[int, Query] = field(default_factory=dict)
    finished: dict[int, Ranking] = field(default_factory=dict)
    errors: dict[int, RecommenderError] = field(default_factory=dict)
    remarks: dict[int, Remarks] = field(default_factory=dict)
    """Of the queries and the finished ones."""
    alone: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Places of the plain rows that have a user and no history."""


class RowReader:
    """Reads tables in the form of `columns.canonical` for one version, within the limits of requests.

    Raises BulkError if the version cannot answer any row of such columns.
    """

    def __init__(self, version: Version, limits: Limits, columns: Columns, *, exclude_history: bool = False) -> None:
        self._version = version
        self._limits = limits
        self._exclude_history = exclude_history
        self._reader = Reader(limits)
        model = version.model
        self._end = _first_unknown(model.readable, model.padding_id)
        self._excluded_end = _first_unknown(model.known_items, model.padding_id)
        self._excludes = "excluded" in version.abilities
        _check(version, columns, exclude_history=exclude_history)

    def read(self, table: pa.Table) -> Rows:
        """Read a table; raises nothing for what is wrong with single rows."""
        arrays = {name: table.column(name).combine_chunks() for name in table.column_names}
        count = len(table)
        named, excluded = self._lists(arrays, "item"), self._lists(arrays, "excluded_item")
        users, known, absent = self._users(arrays.get("user"), count)
        ks, has_limit = self._ks(arrays.get("limit"), count)
        plain = has_limit & (named.lengths <= self._limits.history) & (excluded.lengths <= self._limits.excluded)
        plain &= ~named.outside(self._end) & ~excluded.outside(self._excluded_end)
        plain &= (known | (absent & (named.lengths > 0))) & ~_more(arrays, count)
        if not self._excludes:
            plain &= excluded.lengths == 0
            if self._exclude_history:
                plain &= named.lengths == 0
        if self._version.plain_items < 0:
            plain[:] = False  # it needs more than a history
        if FAULT in arrays:
            plain &= arrays[FAULT].is_null().to_numpy(zero_copy_only=False)
        places = np.flatnonzero(plain)
        histories = named.take(places)
        rows = Rows(
            count,
            arrays.get("user"),
            Plain(
                places,
                histories.last(self._version.model.longest_history),
                ks[places],
                excluded.take(places),
                histories if self._exclude_history else no_lists(len(places)),
                users[places],
                self._version.model.items or _IDS_END,
                self._version.masks,
            ),
        )
        rows.alone = places[named.lengths[places] == 0]
        others = np.flatnonzero(~plain)
        for start in range(0, len(others), _AT_ONCE):
            some = others[start : start + _AT_ONCE]
            for place, row in zip(some.tolist(), table.take(pa.array(some)).to_pylist(), strict=True):
                self._read_alone(rows, place, row)
        return rows

    def _read_alone(self, rows: Rows, place: int, row: dict[str, Any]) -> None:
        try:
            if row.get(FAULT) is not None:
                raise FaultyLineError(row[FAULT])
            asked = self._reader.read(request_of(row, self._version, exclude_history=self._exclude_history))
            wanted, rows.remarks[place] = asked.for_version(self._version)
        except RecommenderError as error:
            rows.errors[place] = error
        else:
            if isinstance(wanted, Query):
                rows.queries[place] = wanted
            else:
                rows.finished[place] = wanted

    def _lists(self, arrays: dict[str, pa.Array], what: str) -> Lists:
        vocabulary = self._version.vocabulary
        if (ids := arrays.get(f"{what}_ids")) is not None:
            return lists_of(ids)
        if (keys := arrays.get(f"{what}_keys")) is not None and vocabulary is not None:
            return lists_of(keys, vocabulary.ids)
        return no_lists(len(next(iter(arrays.values()))))

    def _ks(self, limits: pa.Array | None, count: int) -> tuple[Ints, Flags]:
        """How many each row gets, and whether its limit is one that the model has."""
        if limits is None:
            return np.full(count, self._version.limit, np.int64), np.ones(count, np.bool_)
        told = numbers(limits)
        set_, absent = limits.is_valid().to_numpy(zero_copy_only=False), limits.is_null().to_numpy(zero_copy_only=False)
        most = min(self._version.model.max_k, _MOST_LIMIT)
        fine = absent | (set_ & (told >= 0) & (told <= most))
        return np.where(absent | (told == 0), self._version.limit, told), fine

    def _users(self, column: pa.Array | None, count: int) -> tuple[Ints, Flags, Flags]:
        """The number of each row's user, whether it is known, and whether none is named and the model needs none."""
        users = self._version.model.users
        if users is None or column is None:
            ranked = users is None or users.unknown != "fallback"
            return np.zeros(count, np.int64), np.zeros(count, np.bool_), np.full(count, ranked)
        absent = column.is_null().to_numpy(zero_copy_only=False)
        vocabulary = self._version.user_vocabulary
        if pa.types.is_string(column.type):
            named = ids_of_keys(column, _decimal if vocabulary is None else vocabulary.ids)
            named = named if vocabulary is None else np.where(named >= 0, named + users.first, NOBODY)
        else:
            named = numbers(column)
        known = ~absent & (named >= users.first) & (named <= users.last)
        return np.where(known, named, 0), known, absent & (users.unknown != "fallback")


def _first_unknown(items: int | None, padding: int | None) -> int:
    """All ids below this are known."""
    return min(end for end in (_IDS_END, items, padding) if end is not None)


def _check(version: Version, columns: Columns, *, exclude_history: bool) -> None:
    """Raise BulkError for columns that no row could be answered with."""
    label = version.model.label
    if columns.filter is not None:
        try:
            attributes_of(version)
        except InvalidRequestError as error:
            why = "; ".join(each.description for each in error.violations)
            raise BulkError(f"column {columns.filter}: {why}; --ignore {columns.filter} scores without it") from error
    for meaning, name in columns.named().items():
        if meaning.endswith("_keys") and version.vocabulary is None:
            raise BulkError(f"column {name}: model {label} has no vocabulary: name items by ids")
        if meaning.startswith("excluded") and "excluded" not in version.abilities:
            raise BulkError(f"column {name}: model {label} was exported without the input `excluded`")
        if meaning.startswith(("candidate", "filter")) and "candidates" not in version.abilities:
            raise BulkError(f"column {name}: model {label} was exported without the input `candidates`")
    if exclude_history and "excluded" not in version.abilities:
        raise BulkError(f"--exclude-history: model {label} was exported without the input `excluded`")


def _decimal(keys: Sequence[str]) -> list[int | None]:
    """Return the numbers in text, for users without keys."""
    return [int(key) if key.isdecimal() and len(key) < _DIGITS else None for key in keys]


def _more(arrays: dict[str, pa.Array], count: int) -> Flags:
    """Whether a row has candidates, a filter, types or times of its history, or features."""
    found = np.zeros(count, np.bool_)
    for name, column in arrays.items():
        if name.startswith(FEATURE) or name in ("filter", "filter_parameters"):
            found |= column.is_valid().to_numpy(zero_copy_only=False)
        elif name.startswith(("candidate_", "history_")):
            found |= (pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)) > 0
    return found
