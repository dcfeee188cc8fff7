"""Tables of items that versions bring along: files of their cards, by key or by id, which never change."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pyarrow.compute as pc
import structlog

from recommender.catalogue.attributes.cache import MaskCache
from recommender.catalogue.attributes.errors import TableError
from recommender.catalogue.attributes.filters import TableStatistics
from recommender.catalogue.attributes.joined import Current, JoinedAttributes, Workshop
from recommender.catalogue.attributes.reading import read_table
from recommender.catalogue.attributes.table import ItemTable

log = structlog.get_logger(__name__)


class OwnTables:
    """Joins each version with the table that it brings; filters over all of them may take `cache_bytes` of memory."""

    def __init__(self, *, cache_bytes: int) -> None:
        self._workshop = Workshop(MaskCache(cache_bytes))
        self._joined: weakref.WeakSet[JoinedAttributes] = weakref.WeakSet()
        self._numbers = count()
        self._adding = threading.Lock()
        """Metrics read the set while a version is loaded on another thread."""

    def attributes(
        self, path: Path, ids: Callable[[Sequence[str]], Sequence[int | None]] | None, items: int, never: frozenset[int]
    ) -> JoinedAttributes:
        """The attributes of a version's items, from a file; blocks for some seconds.

        `ids` is None for a version without keys; the others are those of `Tables.attributes`. Raises TableError.
        """
        table = read_own(path, items, has_keys=ids is not None)
        made = JoinedAttributes(self._workshop, next(self._numbers), ids or _nobody, items, never)
        made.join(Current(table, 0))
        with self._adding:
            self._joined.add(made)
        log.info(
            "items",
            path=str(path),
            sha256=table.digest[:12],
            rows=len(table),
            attributes=dict(table.kinds),
            megabytes=round(table.nbytes / 1e6, 1),
        )
        return made

    def statistics(self) -> TableStatistics | None:
        """The tables of all loaded versions; None without any."""
        with self._adding:
            tables = [made.table for made in self._joined]
        if not tables:
            return None
        return TableStatistics(
            rows=sum(map(len, tables)),
            bytes=sum(table.nbytes for table in tables),
            replaced=0,
            stale=False,
            ready=self._workshop.ready,
            evaluated=self._workshop.evaluated,
            evicted=self._workshop.cache.evicted,
        )


def read_own(path: Path, items: int, *, has_keys: bool) -> ItemTable:
    """Read the table of a version of `items` items; blocks. Raises TableError if it does not fit that version."""
    table = read_table(path, of_version=True)
    if not table.by_id:
        if not has_keys:
            raise TableError(f"{path}: its first column is 'key', and the model has no keys: give its items by 'id'")
    elif (largest := pc.max(table.keys).as_py()) >= items:
        raise TableError(f"{path}: it has the id {largest}, and the model's ids are 0 to {items - 1}")
    return table


def _nobody(keys: Sequence[str]) -> Sequence[int | None]:
    return [None] * len(keys)
