"""Lists of hidden items: text with a key a line, from a file or by HTTP, read and checked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from recommender.engine.files import open_regular
from recommender.errors import StartError

MOST_KEYS: Final = 1_000_000
MOST_BYTES: Final = 64 << 20
_PART_BYTES = 1 << 16
_YOUNG_NS = 2_000_000_000
"""A file that was written so recently may be written again without a sign: the clock of its system is coarse."""

Mark: TypeAlias = str | tuple[int, ...]
"""Identifies one state of a source; an empty one identifies nothing."""


@dataclass(frozen=True, slots=True)
class KeyList:
    """Keys, one a line. The bytes are kept as they are: a million strings would take a hundred megabytes."""

    content: bytes

    def parts(self) -> Iterator[list[str]]:
        """The keys, a few thousand at a time."""
        start, content = 0, self.content
        while start < len(content):
            end = content.find(b"\n", start + _PART_BYTES)
            end = len(content) if end < 0 else end
            lines = content[start:end].decode().split("\n")
            yield [key for line in lines if (key := line.rstrip("\r"))]
            start = end + 1


def key_list(content: bytes, place: str) -> KeyList:
    """Read a list; `place` names it in messages. Raises StartError if it is no text, or too long."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.count(b"\n") > MOST_KEYS:
        raise StartError(f"{place} has more than {MOST_KEYS:,} lines, the most that a list of hidden items may have")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StartError(f"{place}, line {line}, is not UTF-8: a list of hidden items has a key on each line") from None
    return KeyList(content)


class ListSource(Protocol):
    """A source of a list."""

    place: str
    """Names it in messages, without passwords."""

    def read(self, known: Mark | None) -> tuple[KeyList, Mark] | None:
        """Read the list; None if it is still the one that had the mark `known`. Blocks.

        Raises StartError if it cannot be read now.
        """


class FileSource:
    """A list in a file. To be replaced as a whole: half of it would show items that the other half hides."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.place = str(path)

    def read(self, known: Mark | None) -> tuple[KeyList, Mark] | None:
        """Read the file, unless it is as it was. Raises StartError if it cannot be read."""
        try:
            if known and _mark(self._path.stat()) == known:
                return None
            with open_regular(self._path) as file:
                found = os.fstat(file.fileno())
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise StartError(f"{self.place} (hidden items) cannot be read: {error.strerror}") from error
        if len(content) > MOST_BYTES:
            raise StartError(f"{self.place} has more than {MOST_BYTES >> 20} MiB, the most that a list may have")
        return key_list(content, self.place), _mark(found)


def _mark(found: os.stat_result) -> Mark:
    young = time.time_ns() - found.st_ctime_ns < _YOUNG_NS
    return "" if young else (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
