"""Versions from a registry on this machine's disk, by digest: complete or not there.

`versions/<digest>/` holds the files of one version. They arrive in `versions/<digest>.partial`, under a lock that the
system gives back however the process ends, and take their name once they are verified. So whoever holds the lock may
throw away what a dead process has left. `served/` remembers what each reference served last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from recommender.errors import SourceError
from recommender.models.artifact import Release

_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache in a folder, shared by any number of processes. `kept` versions stay that serve no longer."""

    folder: Path
    kept: int = 3
    patience: float = 60.0
    """Seconds to wait for another process that downloads the same version."""

    def entry(self, digest: str) -> Path | None:
        """The folder of a complete version, if it is there."""
        folder = self._versions / digest
        return folder if folder.is_dir() else None

    @contextlib.contextmanager
    def filling(self, digest: str) -> Iterator[Path]:
        """An empty folder to fill; when the block ends without an error it is the version's, and not before.

        Raises SourceError if another process fills it for too long.
        """
        with self._locked(digest, self.patience):
            draft = self._versions / f"{digest}{_PARTIAL}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                yield draft
                shutil.rmtree(self._versions / digest, ignore_errors=True)
                draft.replace(self._versions / digest)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def drop(self, digest: str) -> None:
        """Throw a version away: it is not what it was."""
        shutil.rmtree(self._versions / digest, ignore_errors=True)

    def remember(self, reference: str, release: Release) -> None:
        """Take note that a reference serves a release, and tidy up."""
        note = self._note(reference)
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_suffix(".draft")
        told = {"name": release.name, "version": release.version, "stamp": release.stamp, "aliases": release.aliases}
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(json.dumps({"reference": reference, **told}), encoding="utf-8")
        draft.replace(note)
        with contextlib.suppress(OSError):
            (self._versions / release.stamp).touch()
        self.tidy()

    def remembered(self, reference: str) -> Release | None:
        """What a reference served last, if its files are still there."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            told = json.loads(self._note(reference).read_text(encoding="utf-8"))
            if self.entry(told["stamp"]) is not None:
                return Release(told["name"], told["version"], told["stamp"], tuple(told["aliases"]))
        return None

    def tidy(self) -> None:
        """Remove what dead processes have left, and all but the newest versions that no reference serves."""
        if not self._versions.is_dir():
            return
        for draft in self._versions.glob(f"*{_PARTIAL}"):
            with contextlib.suppress(SourceError), self._locked(draft.name.removesuffix(_PARTIAL), 0.0):
                shutil.rmtree(draft, ignore_errors=True)
        served = set()
        for note in (self.folder / "served").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                served.add(json.loads(note.read_text(encoding="utf-8"))["stamp"])
        idle = [each for each in self._versions.iterdir() if each.is_dir() and not each.name.endswith(_PARTIAL)]
        idle = [each for each in idle if each.name not in served]
        for old in sorted(idle, key=lambda each: each.stat().st_mtime, reverse=True)[self.kept :]:
            shutil.rmtree(old, ignore_errors=True)

    @property
    def _versions(self) -> Path:
        return self.folder / "versions"

    def _note(self, reference: str) -> Path:
        return self.folder / "served" / f"{hashlib.sha256(reference.encode()).hexdigest()[:32]}.json"

    @contextlib.contextmanager
    def _locked(self, digest: str, patience: float) -> Iterator[None]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / digest, timeout=patience):
                yield
        except Timeout:
            raise SourceError(f"another process has been downloading the same version for {patience:g} s") from None
