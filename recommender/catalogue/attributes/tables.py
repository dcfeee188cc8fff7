"""The table of items while it serves: read at the start, followed on disk, and joined with each version's items."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import structlog

from recommender.catalogue.attributes.added import faults_of
from recommender.catalogue.attributes.cache import MaskCache
from recommender.catalogue.attributes.filters import TableStatistics
from recommender.catalogue.attributes.joined import Current, JoinedAttributes, Workshop
from recommender.catalogue.attributes.reading import read_table, signature
from recommender.catalogue.attributes.table import ItemTable
from recommender.errors import StartError
from recommender.new_items import AttributeValues
from recommender.threads import in_background

log = structlog.get_logger(__name__)


class FollowedTables:
    """The `Tables` of a file, looked at every `interval` seconds; filters may take `cache_bytes` of memory."""

    def __init__(self, path: Path, *, interval: float, cache_bytes: int) -> None:
        self._workshop = Workshop(MaskCache(cache_bytes))
        self._path = path
        self._interval = interval
        self._current: Current | None = None
        self._stale = False
        self._signature: tuple[int, ...] = ()
        self._lock = threading.Lock()
        """Held while the table in use changes, and while a version starts to use it."""
        self._joined: weakref.WeakSet[JoinedAttributes] = weakref.WeakSet()
        self._numbers = count()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the table, and follow its file until `close`. Raises TableError."""
        self._signature = await in_background(signature, self._path)
        self._take_up(Current(await in_background(read_table, self._path), 0))
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Follow it no longer; also where nothing was started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def attributes(
        self, ids: Callable[[Sequence[str]], Sequence[int | None]], items: int, never: frozenset[int]
    ) -> JoinedAttributes:
        """The attributes of a version's items; see `Tables`."""
        made = JoinedAttributes(self._workshop, next(self._numbers), ids, items, never)
        while (current := self._current) is not None:
            made.join(current)
            with self._lock:
                # A table that was loaded meanwhile was not joined with this version.
                if self._current is current:
                    self._joined.add(made)
                    return made
        raise RuntimeError("the table of items is read before the versions are")

    def statistics(self) -> TableStatistics:
        """The table in use, and the filters up to now."""
        current = self._current
        return TableStatistics(
            rows=0 if current is None else len(current.table),
            bytes=0 if current is None else current.table.nbytes,
            replaced=0 if current is None else current.number,
            stale=self._stale,
            ready=self._workshop.ready,
            evaluated=self._workshop.evaluated,
            evicted=self._workshop.cache.evicted,
        )

    def faults(self, given: AttributeValues) -> Iterator[tuple[str, str]]:
        """Those of an item's attributes that the table in use cannot have; see `Tables`."""
        return iter(()) if self._current is None else faults_of(given, self._current.table)

    async def _follow(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(self._interval)
            former, complaint = complaint, await self._look()
            self._stale = bool(complaint)
            if complaint and complaint != former:
                log.error("items not reloaded: the previous table stays in use", reason=complaint)

    async def _look(self) -> str:
        """Load a new file; returns why it cannot be used, or None."""
        try:
            found = await in_background(signature, self._path)
            if found == self._signature:
                return ""
            table = await in_background(read_table, self._path)
            await self._replace(table)
        except StartError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (after any fault of the file the previous table stays in use)
            return repr(error)
        self._signature = found
        return ""

    async def _replace(self, table: ItemTable) -> None:
        """Use another table in place of the current one: each version as soon as it is joined with it."""
        current = self._current
        if current is not None and table.digest == current.table.digest:
            return
        following = Current(table, 0 if current is None else current.number + 1)
        while True:
            with self._lock:
                missing = [each for each in self._joined if not each.uses(following)]
                if not missing:
                    self._take_up(following)
                    return
            for each in missing:
                await in_background(each.join, following)

    def _take_up(self, current: Current) -> None:
        self._current = current
        self._workshop.cache.clear()
        table = current.table
        log.info(
            "items",
            path=str(self._path),
            sha256=table.digest[:12],
            rows=len(table),
            attributes=dict(table.kinds),
            megabytes=round(table.nbytes / 1e6, 1),
        )
