"""The journal: what calls have hidden and added, in an SQLite file that all workers of a server share.

Each item that calls have named is a row, with the number of the change that named it last. So a reader asks for what
has changed since it looked, and gets as many rows as there were changes. Items that were shown again keep their rows
until there are `_MOST_SHOWN`; a reader that has missed some of those reads everything.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from recommender.catalogue.new_items.journal import SCHEMA as NEW_ITEMS
from recommender.catalogue.new_items.journal import NewItemsJournal
from recommender.errors import CatalogueFullError, StartError

MOST_HIDDEN: Final = 100_000
_MOST_SHOWN = 10_000
_LOCK_SECONDS = 5.0
_LOG_BYTES = 1 << 24
"""Largest size of SQLite's write-ahead log after a checkpoint."""
_APPLICATION, _FORMAT = 0x5245434A, 1
_SCHEMA = """
CREATE TABLE items (
    model TEXT NOT NULL, item TEXT NOT NULL, hidden INTEGER NOT NULL, change INTEGER NOT NULL,
    PRIMARY KEY (model, item)
) WITHOUT ROWID;
CREATE INDEX items_by_change ON items (change);
CREATE TABLE state (change INTEGER NOT NULL, dropped INTEGER NOT NULL, hidden INTEGER NOT NULL, shown INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0, 0, 0)
"""
"""`state` has one row: the last change, the last one whose shown items were dropped, and how many items there are."""


class Entry(NamedTuple):
    """An item that calls have named, and whether it is hidden. `model` is empty for a key, else `item` is an id."""

    model: str
    item: str
    hidden: bool


class Written(NamedTuple):
    """How many items a call has changed, and how many are hidden now."""

    changed: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes after the given one, up to `number`; if `whole`, all hidden items."""

    number: int
    entries: Sequence[Entry]
    whole: bool


class Journal:
    """An open journal, for one thread at a time; every method blocks and raises sqlite3.Error if the file fails."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._file = path.stat().st_ino
        self.new_items = NewItemsJournal(connection, self._transaction)
        """The items that calls have added."""

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open a journal, and make it if it is not there. Raises StartError if it cannot be used."""
        try:
            # Autocommit: transactions are begun by hand. Threads take turns, so SQLite need not check them.
            connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # Each commit is on the disk before its call ends.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
            _make(connection, path)
        except sqlite3.Error as error:
            connection.close()
            raise _unusable(path, error) from error
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def write(self, model: str, items: Sequence[str], *, hidden: bool) -> Written:
        """Hide or show these items, all or none; they are on the disk when this returns.

        Raises CatalogueFullError if more than `MOST_HIDDEN` would be hidden.
        """
        with self._transaction("IMMEDIATE") as connection:
            change, _, count, shown = connection.execute("SELECT * FROM state").fetchone()
            changed = 0
            for item in dict.fromkeys(items):
                row = connection.execute("SELECT hidden FROM items WHERE model = ? AND item = ?", (model, item))
                before: tuple[int] | None = row.fetchone()
                if (hidden and before != (1,)) or (not hidden and before == (1,)):
                    changed += 1
                    shown += -1 if hidden and before else not hidden
                    connection.execute(
                        "INSERT INTO items VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET hidden = ?3, change = ?4",
                        (model, item, hidden, change + 1),
                    )
            count += changed if hidden else -changed
            if count > MOST_HIDDEN and changed and hidden:
                raise CatalogueFullError(
                    f"{MOST_HIDDEN:,} items may be hidden by calls, and these would make it {count:,}: show some, or "
                    "put them into the list of RECOMMENDER_HIDDEN_ITEMS"
                )
            if changed:
                connection.execute("UPDATE state SET change = ?, hidden = ?, shown = ?", (change + 1, count, shown))
            if shown > _MOST_SHOWN:
                connection.execute("DELETE FROM items WHERE NOT hidden")
                connection.execute("UPDATE state SET dropped = change, shown = 0")
            return Written(changed, count)

    def changes(self, since: int | None = None) -> Changes | None:
        """Changes after that change, None without any; without a change all hidden items."""
        if self._connection.execute("SELECT change FROM state").fetchone() == (since,):
            return None
        with self._transaction("DEFERRED") as connection:
            number, dropped, _, _ = connection.execute("SELECT * FROM state").fetchone()
            whole = since is None or since < dropped
            asked = "SELECT model, item, hidden FROM items WHERE "
            rows = connection.execute(asked + "hidden") if whole else connection.execute(asked + "change > ?", (since,))
            return Changes(number, [Entry(model, item, bool(hidden)) for model, item, hidden in rows], whole)

    def page(self, after: Entry | None, size: int) -> list[Entry]:
        """The next hidden items in order, after this one."""
        model, item = ("", "") if after is None else (after.model, after.item)
        rows = self._connection.execute(
            "SELECT model, item FROM items WHERE hidden AND (model, item) > (?, ?) ORDER BY model, item LIMIT ?",
            (model, item, size),
        )
        return [Entry(model, item, hidden=True) for model, item in rows]

    def hidden(self) -> int:
        """How many items are hidden."""
        (count,) = self._connection.execute("SELECT hidden FROM state").fetchone()
        return int(count)

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        # SQLite keeps writing to a deleted file, and what it writes is lost.
        try:
            there = self._path.stat().st_ino == self._file
        except OSError:
            there = False
        if not there:
            raise sqlite3.OperationalError("the file was deleted or replaced while it was open")
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise


def _make(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file. Raises StartError if the file is another program's, or of a later form."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (written,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute(f"PRAGMA user_version={_FORMAT}")
        elif (application, written) != (_APPLICATION, _FORMAT):
            raise StartError(  # noqa: TRY301 (the transaction ends with it)
                f"{path} (RECOMMENDER_CATALOGUE_JOURNAL) is no journal of this version: name another file"
            )
        # Also in the journal of an earlier release, which can still use it.
        for statement in NEW_ITEMS.split(";"):
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _unusable(path: Path, error: sqlite3.Error) -> StartError:
    return StartError(f"{path} (RECOMMENDER_CATALOGUE_JOURNAL) cannot be opened: {error}")
