"""Interface of a source of models: it names releases, and fetches the files of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from recommender.models.artifact import Artifact, Release

Progress: TypeAlias = Callable[[int, int], None]
"""Progress of a download: bytes so far, and bytes in all."""


class Source(Protocol):
    """The source of one model's versions. Every method may block, and is called on a separate thread."""

    @property
    def reference(self) -> str:
        """The reference as the operator wrote it."""

    @property
    def names(self) -> frozenset[str]:
        """Names by which requests may call its model before it is loaded."""

    @property
    def may_change(self) -> bool:
        """Whether what it wants may change while the server runs."""

    def wanted(self) -> Release:
        """The release to serve now. Raises ModelError if absent, SourceError if the source cannot be reached."""

    def others(self) -> Sequence[Release]:
        """Releases to serve at start if the wanted one is unavailable, best first."""

    def fetch(self, release: Release, progress: Progress) -> Artifact:
        """The files of a release, verified. Raises ModelError if they are at fault, SourceError as `wanted` does."""

    def keep(self, release: Release) -> None:
        """Take note that a release serves: a later start may fall back on it."""

    def close(self) -> None:
        """End what it needs to be asked; a call under way may fail. A second call is a no-op."""
