"""Files of versions on this machine's disk, by digest, complete or absent, written by this package only.

`versions/<digest>/` holds the files of one version, read-only. They arrive in `versions/<digest>.partial`, under a lock
that the system releases however the process ends, and get their name once they are verified. So the holder of the lock
may remove what a dead process has left. `served/` remembers what each reference served last.

Mapped files are mapped from here: a file that is truncated while it is mapped would end the process with SIGBUS. All
processes map the same file, so it is in memory once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from recommender.errors import ModelError, SourceError
from recommender.models.artifact import Artifact, Release

log = structlog.get_logger(__name__)

_PARTIAL = ".partial"
_REMEDY = "set RECOMMENDER_MODEL_CACHE_DIR to a folder that this user may write, with room for the model"


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache in a folder, shared by any number of processes. `kept` versions stay that serve no longer.

    The folder may begin with a `~`.

    Methods raise SourceError if it cannot be written. Where `spare` is given, that folder is used instead, with a
    warning.
    """

    folder: Path
    spare: Path | None = None
    kept: int = 3
    patience: float = 60.0
    """Seconds to wait for another process that fetches the same version."""

    def obtain(self, digest: str, fill: Callable[[Path], None], check: Callable[[Path], Artifact]) -> Artifact:
        """Open a version in the cache; `fill` puts its files into an empty folder unless they are there.

        `check` opens the files in a folder and raises ModelError if they are at fault: then they are fetched again,
        once. Raises what `fill` and `check` raise, and SourceError if another process fills it for too long.
        """
        with self._written():
            versions = self._place(warn=True) / "versions"
            entry = versions / digest
            with contextlib.suppress(ModelError):
                if entry.is_dir():
                    return check(entry)
            with self._locked(digest, self.patience):
                with contextlib.suppress(ModelError):
                    if entry.is_dir():  # another process was quicker
                        return check(entry)
                draft = versions / f"{digest}{_PARTIAL}"
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                try:
                    fill(draft)
                    artifact = check(draft)
                    _protect(draft)
                    shutil.rmtree(entry, ignore_errors=True)  # the disk, or another process, has altered it
                    draft.replace(entry)
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
            return dataclasses.replace(artifact, path=entry / artifact.path.name)

    def remember(self, reference: str, release: Release) -> None:
        """Record that a reference serves a release whose `stamp` is its digest here, and clean up."""
        with self._written():
            place = self._place()
            note = _note(place, reference)
            note.parent.mkdir(parents=True, exist_ok=True)
            draft = note.with_suffix(".draft")
            told = {
                "name": release.name, "version": release.version, "stamp": release.stamp, "aliases": release.aliases
            }  # fmt: skip
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600, exist_ok=False)
            draft.write_text(json.dumps({"reference": reference, **told}), encoding="utf-8")
            draft.replace(note)
            with contextlib.suppress(OSError):
                (place / "versions" / release.stamp).touch()
            self.tidy()

    def remembered(self, reference: str) -> Release | None:
        """The release that a reference served last, if its files are still there."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            place = self._place()
            told = json.loads(_note(place, reference).read_text(encoding="utf-8"))
            if (place / "versions" / told["stamp"]).is_dir():
                return Release(told["name"], told["version"], told["stamp"], tuple(told["aliases"]))
        return None

    def tidy(self) -> None:
        """Remove what dead processes have left, and all but the newest versions that no reference serves."""
        versions = self._place() / "versions"
        if not versions.is_dir():
            return
        for draft in versions.glob(f"*{_PARTIAL}"):
            with contextlib.suppress(SourceError), self._locked(draft.name.removesuffix(_PARTIAL), 0.0):
                shutil.rmtree(draft, ignore_errors=True)
        served = set()
        for note in (self._place() / "served").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                served.add(json.loads(note.read_text(encoding="utf-8"))["stamp"])
        idle = [each for each in versions.iterdir() if each.is_dir() and not each.name.endswith(_PARTIAL)]
        idle = [each for each in idle if each.name not in served]
        for old in sorted(idle, key=lambda each: each.stat().st_mtime, reverse=True)[self.kept :]:
            shutil.rmtree(old, ignore_errors=True)

    def _place(self, *, warn: bool = False) -> Path:
        """The folder, made if need be; the spare one if this cannot be written. Raises OSError."""
        try:
            folder = _expanded(self.folder)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            raise PermissionError(None, "it cannot be written", str(folder))
        except OSError as error:
            if self.spare is None:
                raise
            if warn:
                reason = error.strerror or str(error)
                log.warning(
                    "the model cache is a temporary folder", folder=str(self.spare), instead_of=str(self.folder),
                    reason=reason, remedy=_REMEDY,
                )  # fmt: skip
        self.spare.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.spare.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(None, "it is not this user's own folder", str(self.spare))
        return self.spare

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Errors of the disk as SourceError: it may have room later."""
        try:
            yield
        except OSError as error:
            raise SourceError(
                f"the model cache {self.folder} cannot be used: {error.strerror or error} "
                f"({error.filename or self.folder}); {_REMEDY}"
            ) from error

    @contextlib.contextmanager
    def _locked(self, digest: str, patience: float) -> Iterator[None]:
        locks = self._place() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / digest, timeout=patience):
                yield
        except Timeout:
            raise SourceError(f"another process has been fetching the same version for {patience:g} s") from None


def _expanded(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(None, "this user has no home", str(folder)) from error


def spare_folder() -> Path | None:
    """A folder of this user among the temporary ones; None where no temporary file can be written."""
    with contextlib.suppress(FileNotFoundError):
        return Path(tempfile.gettempdir()) / f"recommender-{os.geteuid()}"
    return None


def _protect(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(0o444)


def _note(place: Path, reference: str) -> Path:
    return place / "served" / f"{hashlib.sha256(reference.encode()).hexdigest()[:32]}.json"
