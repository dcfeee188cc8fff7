"""The journal of one process: calls write to it, and a separate thread follows it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from recommender.catalogue.availability.journal import Changes, Entry, Journal, Written
from recommender.catalogue.new_items.journal import NewChanges
from recommender.errors import DeadlineError, QuotaError, UnavailableError
from recommender.threads import Threads, in_background

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.1
_MOST_WAITING = 64
_RETRY_SECONDS = 0.1

R = TypeVar("R")


class KeptChanges:
    """Items that calls have hidden and added, kept in the journal at `path`.

    `use` gets every change of hidden items, this process's or another's, and `use_new` those of new items.
    """

    what = "journal of the catalogue"

    def __init__(
        self,
        path: Path,
        use: Callable[[Changes], Awaitable[None]],
        use_new: Callable[[NewChanges], Awaitable[None]],
    ) -> None:
        self.stale = False
        """Whether the last look at the journal failed."""
        self.hidden = 0
        """How many items are hidden by calls, as far as is known."""
        self.new_items = 0
        """How many items calls have added, as far as is known."""
        self._path = path
        self._use = use
        self._use_new = use_new
        self._journal: Journal | None = None
        self._threads: Threads | None = None
        self._seen: int | None = None
        self._seen_new: int | None = None
        self._waiting = 0
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the journal, use what it has, and follow it until `close`. Raises StartError if it cannot be used."""
        self._journal = await in_background(Journal.open, self._path)
        self._threads = Threads(1, "journal")
        await self._look()
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """End the thread and close the file; a second call is a no-op."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        threads, self._threads = self._threads, None
        if threads is not None and await in_background(threads.close) and self._journal is not None:
            self._journal.close()

    async def write(self, model: str, items: Sequence[str], *, hidden: bool, deadline: float = math.inf) -> Written:
        """Hide or show items; they are kept when this returns. `deadline` is on the monotonic clock.

        Raises CatalogueFullError as `Journal.write` does, QuotaError if too many changes wait, DeadlineError if the
        deadline passes meanwhile, UnavailableError if the journal fails.
        """
        return await self.change(lambda journal: journal.write(model, items, hidden=hidden), deadline)

    async def change(self, work: Callable[[Journal], R], deadline: float = math.inf) -> R:
        """Change the journal by `work`; what that has written is kept when this returns. Raises as `write` does."""
        result = await self.read(work, deadline)
        self._written.set()
        return result

    async def read(self, work: Callable[[Journal], R], deadline: float = math.inf) -> R:
        """Do `work` that only reads. Raises as `write` does."""
        if self._waiting >= _MOST_WAITING:
            raise QuotaError(f"{_MOST_WAITING} calls wait for the catalogue's journal, as many as may", _RETRY_SECONDS)
        return await self._do(work, deadline)

    async def page(self, after: Entry | None, size: int, deadline: float = math.inf) -> list[Entry]:
        """The next hidden items after this one. Raises as `write` does."""
        return await self.read(lambda journal: journal.page(after, size), deadline)

    async def everything(self, model: str, space: str | None) -> tuple[Changes, NewChanges]:
        """All that is hidden and all new items, for a version that comes to be served, however many calls wait.

        `space` is that of its vectors, empty for one of its own, and None for a version that ranks no new items.
        Raises UnavailableError if the journal fails.
        """

        def read(journal: Journal) -> tuple[Changes | None, NewChanges | None]:
            if space is not None:
                journal.new_items.note_served(model, space)
            return journal.changes(), journal.new_items.changes()

        hidden, added = await self._do(read, math.inf)
        if hidden is None or added is None:
            raise AssertionError("the journal was not read")
        return hidden, added

    async def _do(self, work: Callable[[Journal], R], deadline: float) -> R:
        self._waiting += 1
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()):
                return await self._call(work)
        except TimeoutError:
            raise DeadlineError("the deadline passed while the change waited for the journal") from None
        except sqlite3.Error as error:
            log.error("journal of the catalogue failed", reason=str(error))  # noqa: TRY400 (the reason says it)
            raise UnavailableError("the journal of the catalogue fails; the server's log says why") from error
        finally:
            self._waiting -= 1

    async def _call(self, work: Callable[[Journal], R]) -> R:
        threads, journal = self._threads, self._journal
        if threads is None or journal is None:
            raise UnavailableError("the journal of the catalogue is closed; call another server")
        return await threads.put(lambda _: work(journal)).result()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._written.wait()
            self._written.clear()
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 (after any fault of the file the watch continues)
                if not self.stale:
                    said = "journal of the catalogue not read: what it hid stays hidden"
                    log.error(said, reason=repr(error))  # noqa: TRY400 (the reason says it)
                self.stale = True
            else:
                self.stale = False

    async def _look(self) -> None:
        def look(journal: Journal) -> tuple[Changes | None, NewChanges | None, int, int]:
            new = journal.new_items
            return journal.changes(self._seen), new.changes(self._seen_new), journal.hidden(), new.count()

        changes, added, self.hidden, self.new_items = await self._call(look)
        if changes is not None:
            await self._use(changes)
            self._seen = changes.number
        if added is not None:
            await self._use_new(added)
            self._seen_new = added.number
