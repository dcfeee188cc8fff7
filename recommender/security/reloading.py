"""Secrets on disk that are replaced while the server runs: read again, checked, and only then used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from recommender.errors import StartError
from recommender.threads import in_background

T = TypeVar("T")

log = structlog.get_logger(__name__)


class ReloadedFiles(Generic[T]):
    """Files that belong together. `parse` turns their contents into what `use` is given, on the event loop.

    `parse` gets a file's bytes for every path, runs in a thread, and raises StartError where they cannot be
    used. Contents are compared, not dates: a mounted secret is swapped by a link, and a copy keeps its date.
    `every` is how often they are read, in seconds.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        *,
        parse: Callable[[Sequence[bytes]], T],
        use: Callable[[T], None],
        every: float,
    ) -> None:
        self.what = what
        self.paths = tuple(paths)
        self.used: T | None = None
        """The parsed files in use; None before `start`."""
        self.stale = False
        """Whether the last check could not load the files on disk."""
        self._parse = parse
        self._use = use
        self._every = every
        self._contents: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read and use them, then keep watch until `close`. Raises StartError if they cannot be used."""
        self._contents = await in_background(self._read)
        try:
            self._take_up(await in_background(self._parse, self._contents))
        except StartError:
            raise
        except Exception as error:  # a library's, or a full disk
            raise StartError(f"the files of {self.what} cannot be used: {error!r}") from error
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Watch no more; also where nothing was started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(self._every)
            # Files that belong together are seldom replaced in one moment: the next look may find them whole.
            former, complaint = complaint, await self._look()
            self.stale = bool(complaint)
            if complaint and complaint != former:
                log.error("files not reloaded: the previous ones stay in use", what=self.what, reason=complaint)

    async def _look(self) -> str:
        """Load changed files; returns the reason if they cannot be used."""
        try:
            contents = await in_background(self._read)
            if contents == self._contents:
                return ""
            self._take_up(await in_background(self._parse, contents))
        except StartError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (any error in the files must not end the watch)
            return repr(error)
        self._contents = contents
        log.info("reloaded", what=self.what)
        return ""

    def _take_up(self, found: T) -> None:
        self._use(found)
        self.used = found

    def _read(self) -> list[bytes]:
        try:
            return [path.read_bytes() for path in self.paths]
        except OSError as error:
            raise StartError(f"{error.filename} ({self.what}) cannot be read: {error.strerror}") from error
