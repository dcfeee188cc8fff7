"""New items in the journal: an item of each version that it was added to, with its vector.

An item keeps its number as long as its row is there, so all workers know it by one id. A removed item keeps its row,
without a vector, until there are `_MOST_REMOVED`: so readers learn that it is gone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple

from recommender.errors import CatalogueFullError

_MOST_REMOVED = 10_000
_FLOAT_BYTES = 4
_MOST_NUMBERED: Final = 1 << 30
"""Ids are int32, and begin behind those of the catalogue."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS new_items (
    number INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, item TEXT NOT NULL, space TEXT,
    vector BLOB, bias REAL NOT NULL, attributes TEXT NOT NULL, change INTEGER NOT NULL, UNIQUE (model, item)
);
CREATE INDEX IF NOT EXISTS new_items_by_change ON new_items (change);
CREATE TABLE IF NOT EXISTS new_items_state (
    id INTEGER PRIMARY KEY CHECK (id = 0), change INTEGER NOT NULL, dropped INTEGER NOT NULL,
    present INTEGER NOT NULL, removed INTEGER NOT NULL
);
INSERT OR IGNORE INTO new_items_state VALUES (0, 0, 0, 0, 0)
"""
"""`space` is NULL until the version has been served, and then names its space of vectors, empty if it names none.

The state is the last change, the last one whose removed items were dropped, and how many items there are.
"""
_STATE = "SELECT change, dropped, present, removed FROM new_items_state"


class NewItem(NamedTuple):
    """An item as a call brings it: float32 bytes, and attributes as JSON."""

    key: str
    vector: bytes
    bias: float = 0.0
    attributes: str = "{}"

    @property
    def size(self) -> int:
        """Numbers of the vector."""
        return len(self.vector) // _FLOAT_BYTES


class NewEntry(NamedTuple):
    """An item of the version `model`; a removed one has no vector. `space` is None until that version was served."""

    number: int
    model: str
    key: str
    space: str | None
    vector: bytes | None
    bias: float
    attributes: str
    change: int


class KeptItem(NamedTuple):
    """An item of the version `model` without its vector, which has so many numbers; `space` as of `NewEntry`."""

    model: str
    key: str
    space: str | None
    size: int


class Upserted(NamedTuple):
    """How many items a call has added and replaced, how many there are now, and how many were dropped to make room."""

    added: int
    replaced: int
    total: int
    dropped: int


@dataclass(frozen=True, slots=True)
class NewChanges:
    """Changes after the given one, up to `number`; if `whole`, all items."""

    number: int
    entries: Sequence[NewEntry]
    whole: bool


class NewItemsJournal:
    """The new items of an open journal. `transaction` begins one of the kind that SQLite calls so."""

    def __init__(
        self, connection: sqlite3.Connection, transaction: Callable[[str], AbstractContextManager[sqlite3.Connection]]
    ) -> None:
        self._connection = connection
        self._transaction = transaction

    def upsert(
        self, model: str, space: str | None, items: Sequence[NewItem], *, most: int, spared: Collection[str]
    ) -> Upserted:
        """Add items to a version, all or none; they are on the disk when this returns.

        Beyond `most` items in all, those are dropped that were left behind longest: their version was served, and
        neither it nor its space is `spared`. Raises CatalogueFullError if there are too many still.
        """
        with self._transaction("IMMEDIATE") as connection:
            change, dropped_before, present, removed = connection.execute(_STATE).fetchone()
            change += 1
            added = 0
            for item in items:
                found = connection.execute(
                    "SELECT vector IS NOT NULL FROM new_items WHERE model = ? AND item = ?", (model, item.key)
                )
                before: tuple[int] | None = found.fetchone()
                added += before != (1,)
                removed -= before == (0,)
                connection.execute(
                    "INSERT INTO new_items (model, item, space, vector, bias, attributes, change) "
                    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET "
                    "space = coalesce(?3, space), vector = ?4, bias = ?5, attributes = ?6, change = ?7",
                    (model, item.key, space, item.vector, item.bias, item.attributes, change),
                )
            present += added
            dropped = self._make_room(connection, present - most, change, spared) if present > most and added else 0
            present -= dropped
            removed += dropped
            if present > most and added:
                raise CatalogueFullError(
                    f"{most:,} new items may be kept, and these would make it {present:,}: remove some, or serve a "
                    "version that has them (RECOMMENDER_MAX_NEW_ITEMS)"
                )
            (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM new_items").fetchone()
            if last > _MOST_NUMBERED:
                raise CatalogueFullError("the journal has numbered a billion new items, the most that it can")
            self._end(connection, change, dropped_before, present, removed)
            return Upserted(added, len(items) - added, present, dropped)

    def remove(self, removed_items: Sequence[tuple[str, str]]) -> tuple[int, int]:
        """Remove these items, each a version and a key; returns how many were there, and how many are left."""
        with self._transaction("IMMEDIATE") as connection:
            change, dropped, present, removed = connection.execute(_STATE).fetchone()
            gone = 0
            for model, key in removed_items:
                gone += connection.execute(
                    "UPDATE new_items SET vector = NULL, attributes = '{}', change = ?1 "
                    "WHERE vector IS NOT NULL AND item = ?2 AND model = ?3",
                    (change + 1, key, model),
                ).rowcount
            if gone:
                self._end(connection, change + 1, dropped, present - gone, removed + gone)
            return gone, present - gone

    def note_served(self, model: str, space: str) -> None:
        """Say that a version is served: its items wait no longer, and may be left behind by it."""
        waiting = self._connection.execute(
            "SELECT 1 FROM new_items WHERE model = ? AND space IS NULL LIMIT 1", (model,)
        )
        if waiting.fetchone() is None:
            return
        with self._transaction("IMMEDIATE") as connection:
            connection.execute("UPDATE new_items_state SET change = change + 1")
            (change,) = connection.execute("SELECT change FROM new_items_state").fetchone()
            connection.execute(
                "UPDATE new_items SET space = ?, change = ? WHERE model = ? AND space IS NULL", (space, change, model)
            )

    def changes(self, since: int | None = None) -> NewChanges | None:
        """Changes after that change, None without any; without a change all items."""
        if self._connection.execute("SELECT change FROM new_items_state").fetchone() == (since,):
            return None
        with self._transaction("DEFERRED") as connection:
            number, dropped, _, _ = connection.execute(_STATE).fetchone()
            whole = since is None or since < dropped
            asked = "SELECT number, model, item, space, vector, bias, attributes, change FROM new_items WHERE "
            rows = (
                connection.execute(asked + "vector IS NOT NULL")
                if whole
                else connection.execute(asked + "change > ?", (since,))
            )
            return NewChanges(number, list(map(NewEntry._make, rows)), whole)

    def page(self, after: tuple[str, str] | None, size: int) -> list[KeptItem]:
        """The next items in order, after this version and key; all of them if the size is -1."""
        rows = self._connection.execute(
            "SELECT model, item, space, length(vector) / 4 FROM new_items "
            "WHERE vector IS NOT NULL AND (model, item) > (?, ?) ORDER BY model, item LIMIT ?",
            (*(after or ("", "")), size),
        )
        return list(map(KeptItem._make, rows))

    def count(self) -> int:
        """How many items there are."""
        (present,) = self._connection.execute("SELECT present FROM new_items_state").fetchone()
        return int(present)

    @staticmethod
    def _make_room(connection: sqlite3.Connection, wanted: int, change: int, spared: Collection[str]) -> int:
        """Drop so many items that were left behind, or all that there are; returns how many."""
        return connection.execute(
            "UPDATE new_items SET vector = NULL, attributes = '{}', change = ?1 WHERE number IN ("
            "SELECT number FROM new_items WHERE vector IS NOT NULL AND space IS NOT NULL "
            "AND model NOT IN (SELECT value FROM json_each(?2)) AND space NOT IN (SELECT value FROM json_each(?2)) "
            "ORDER BY change LIMIT ?3)",
            (change, json.dumps([*spared]), wanted),
        ).rowcount

    @staticmethod
    def _end(connection: sqlite3.Connection, change: int, dropped: int, present: int, removed: int) -> None:
        """Note the state after a change, and drop the rows of removed items if these are many."""
        if removed > _MOST_REMOVED:
            connection.execute("DELETE FROM new_items WHERE vector IS NULL")
            dropped, removed = change, 0
        connection.execute(
            "UPDATE new_items_state SET change = ?, dropped = ?, present = ?, removed = ?",
            (change, dropped, present, removed),
        )
