"""A followed list: checked periodically, and loaded when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from recommender.catalogue.availability.lists import KeyList, ListSource, Mark
from recommender.errors import StartError
from recommender.threads import begin

log = structlog.get_logger(__name__)


class FollowedList:
    """A list of one source, looked at `every` so many seconds. `use` is given each new one, on the event loop.

    A look that takes more than `patience` seconds has failed, and there is no other until it ends. What cannot be read
    changes nothing: the last list stays in force.
    """

    what = "hidden items"

    def __init__(
        self, source: ListSource, use: Callable[[KeyList], Awaitable[None]], *, every: float, patience: float
    ) -> None:
        self.stale = False
        """Whether the last look could not read the list."""
        self._source = source
        self._use = use
        self._every = every
        self._patience = patience
        self._used: KeyList | None = None
        self._mark: Mark | None = None
        self._look_under_way: asyncio.Future[tuple[KeyList, Mark] | None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read and use the list, then follow it until `close`. Raises StartError if it cannot be read."""
        complaint = await self._look()
        if complaint:
            raise StartError(complaint)
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Follow no longer; a second call is a no-op."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _watch(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(self._every)
            former, complaint = complaint, await self._look()
            self.stale = bool(complaint)
            if complaint and complaint != former:
                log.error("list of hidden items not read: the last one stays in force", reason=complaint)
            elif former and not complaint:
                log.info("list of hidden items read again", place=self._source.place)

    async def _look(self) -> str:
        """Load the list if it has changed; returns why it cannot be read, or None."""
        if self._look_under_way is None:
            self._look_under_way = begin(self._source.read, self._mark)
            self._look_under_way.add_done_callback(_heard)
        done, _ = await asyncio.wait({self._look_under_way}, timeout=self._patience)
        if not done:
            return f"{self._source.place} (hidden items) has not answered within {self._patience:g} s"
        look, self._look_under_way = self._look_under_way, None
        try:
            found = look.result()
            if found is not None:
                listed, mark = found
                if listed != self._used:
                    await self._use(listed)
                self._used, self._mark = listed, mark
        except StartError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (after any fault of the list the watch continues)
            return repr(error)
        return ""


def _heard(look: asyncio.Future[tuple[KeyList, Mark] | None]) -> None:
    """Retrieve the error of a check that no caller waits for."""
    if not look.cancelled():
        look.exception()
