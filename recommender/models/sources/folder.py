"""A repository folder as a source: `<root>/<name>/<version>/{model.onnx, card.json}`, the largest version serves."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from recommender.errors import ModelError, SourceError
from recommender.models.artifact import Artifact, Release
from recommender.models.card import CARD_NAME
from recommender.models.sources.cache import Cache
from recommender.models.sources.copies import keep_copied, open_copied
from recommender.models.sources.source import Progress

log = structlog.get_logger(__name__)

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBERS = re.compile(r"(\d+)")
_NAMED_VERSIONS = 10


@dataclass(frozen=True, slots=True)
class FolderSource:
    """The versions in the folder of one model; `pinned` is the only one to serve, else the latest is.

    A subfolder is a version as soon as it has a card, so copy the card last. Versions are compared number by number, so
    10 is later than 9 and 1.10 than 1.9. Folders whose names begin with a dot are ignored.
    """

    folder: Path
    cache: Cache
    pinned: str | None = None
    unreadable: set[str] = field(default_factory=set, compare=False)
    """Folders that were passed over at the last look."""

    @property
    def reference(self) -> str:
        """The folder, and the version it is pinned to."""
        return f"{self.folder}@{self.pinned}" if self.pinned else str(self.folder)

    @property
    def names(self) -> frozenset[str]:
        """The model's name, and its label if a version is pinned."""
        name = self.folder.name
        return frozenset({name, f"{name}@{self.pinned}"} if self.pinned else {name})

    @property
    def may_change(self) -> bool:
        """Whether another version may come to serve: not if one is pinned."""
        return self.pinned is None

    def wanted(self) -> Release:
        """The latest version, or the pinned one. Raises ModelError without one."""
        versions = self.versions()
        if self.pinned is not None:
            if self.pinned not in versions:
                raise ModelError(f"{self.folder} has no version {self.pinned}; {_there(versions)}")
            return self._release(self.pinned)
        if not versions:
            raise ModelError(
                f"{self.folder} has no version of a model: none of its folders has a {CARD_NAME}; make one with "
                f"`recommender export --output {self.folder}/1/model.onnx`"
            )
        return self._release(versions[0])

    def others(self) -> Sequence[Release]:
        """The versions below the largest, unless one is pinned."""
        return () if self.pinned else [self._release(version) for version in self.versions()[1:]]

    def fetch(self, release: Release, progress: Progress) -> Artifact:  # noqa: ARG002 (nothing is downloaded)
        """The version's files, held to its card. Raises ModelError, and SourceError if the cache is not writable."""
        return open_copied(self.folder / release.version, release, self.cache)

    def keep(self, release: Release) -> None:
        """Keep the copy of its files, if there is one: the folder itself is there at the next start."""
        keep_copied(self.folder / release.version, release, self.cache, str(self.folder.absolute()))

    def close(self) -> None:
        """Nothing to end."""

    def versions(self) -> list[str]:
        """The versions that have a card, the largest first. Raises SourceError if the folder cannot be read."""
        try:
            named = [each for each in self.folder.iterdir() if _VERSION.fullmatch(each.name)]
        except OSError as error:
            raise SourceError(f"the model folder {self.folder} cannot be read: {error.strerror or error}") from error
        found, unreadable = [], set()
        for each in named:
            try:
                if stat.S_ISREG((each / CARD_NAME).stat().st_mode):
                    found.append(each.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                unreadable.add(each.name)
                if each.name not in self.unreadable:
                    log.warning("a version cannot be read: it is skipped", folder=str(each), reason=error.strerror)
        self.unreadable.clear()
        self.unreadable.update(unreadable)
        return sorted(found, key=_order, reverse=True)

    def _release(self, version: str) -> Release:
        return Release(self.folder.name, version, _stamp(self.folder / version))


def _stamp(folder: Path) -> str:
    """Another one when a file of the folder was written again."""
    parts = []
    try:
        for file in sorted(folder.iterdir()):
            seen = file.stat()
            parts.append(f"{file.name}:{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}")
    except OSError:
        return "gone"
    return " ".join(parts)


def _order(version: str) -> tuple[tuple[int, int | str], ...]:
    """Numbers by their size and above any text, text as it is spelled."""
    parts = [part for part in _NUMBERS.split(version) if part]
    return tuple((1, int(part)) if part.isdecimal() else (0, part) for part in parts)


def _there(versions: Sequence[str]) -> str:
    if not versions:
        return "it has none"
    more = f" and {len(versions) - _NAMED_VERSIONS} more" if len(versions) > _NAMED_VERSIONS else ""
    return f"it has {', '.join(versions[:_NAMED_VERSIONS])}{more}"
