"""The folder that a job writes into: each file is there whole or not at all, and stays there through a power cut."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import filelock
import pyarrow as pa
import pyarrow.fs as pafs

from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import open_filesystem

_LOCK = ".lock"
_DRAFT = ".draft"


class Folder(Protocol):
    """A folder on a disk or in an object store."""

    name: str

    def read(self, file: str) -> bytes | None:
        """Read a file; returns None if absent."""

    def write(self, file: str, content: pa.Buffer | bytes) -> None:
        """Write a file that is there whole or not at all. Raises BulkError."""

    def files(self) -> dict[str, int]:
        """The size of each file, by its name."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep other jobs out. Raises BulkError if another one is in."""


class LocalFolder:
    """A folder on a disk. `patience` is the seconds to wait for the end of another job in it."""

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        self.name = str(path)
        self._path = path
        self._patience = patience

    def read(self, file: str) -> bytes | None:
        """Read a file; returns None if absent."""
        try:
            return (self._path / file).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, file: str, content: pa.Buffer | bytes) -> None:
        """Write a draft, fsync it, rename it, and fsync the folder. Raises BulkError; no draft is left then."""
        draft = self._path / f".{file}{_DRAFT}"
        try:
            with draft.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            draft.replace(self._path / file)
            self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise BulkError(_cannot_write(f"{self.name}/{file}", error)) from error

    def files(self) -> dict[str, int]:
        """The size of each file, by its name; drafts that a killed job left are deleted."""
        sizes = {}
        for each in self._path.iterdir() if self._path.is_dir() else ():
            if each.name.startswith(".") and each.name.endswith(_DRAFT):
                each.unlink()
            elif each.name != _LOCK:
                sizes[each.name] = each.stat().st_size
        return sizes

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and keep other jobs out. Raises BulkError if another one is in."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._path / _LOCK, timeout=self._patience)
            lock.acquire()
        except filelock.Timeout as error:
            raise BulkError(f"another job writes into {self.name}: wait for its end, or name another folder") from error
        except OSError as error:
            raise BulkError(_cannot_write(self.name, error)) from error
        try:
            yield
        finally:
            lock.release()

    def _sync(self) -> None:
        number = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class RemoteFolder:
    """A folder in an object store, which takes a file whole or not at all."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, name: str) -> None:
        self.name = name
        self._filesystem = filesystem
        self._path = path

    def read(self, file: str) -> bytes | None:
        """Read a file; returns None if absent. Raises BulkError if the store cannot be reached."""
        try:
            with self._filesystem.open_input_stream(posixpath.join(self._path, file)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException) as error:
            raise BulkError(f"{self.name}/{file} cannot be read: {error}") from error

    def write(self, file: str, content: pa.Buffer | bytes) -> None:
        """Put an object. Raises BulkError."""
        try:
            with self._filesystem.open_output_stream(posixpath.join(self._path, file)) as stream:
                stream.write(content)
        except (OSError, pa.ArrowException) as error:
            raise BulkError(_cannot_write(f"{self.name}/{file}", error)) from error

    def files(self) -> dict[str, int]:
        """The size of each object, by its name."""
        try:
            found = self._filesystem.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        except (OSError, pa.ArrowException) as error:
            raise BulkError(f"{self.name} cannot be read: {error}") from error
        return {each.base_name: each.size for each in found if each.is_file}

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Lock nothing: an object store has no locks, so no other job may write there."""
        return contextlib.nullcontext()


def open_folder(where: str, patience: float = 0.0) -> Folder:
    """The folder of a path or an address. Raises BulkError for an address that cannot be opened.

    `patience` is the seconds to wait for the end of another job in it, on a disk.
    """
    if "://" not in where:
        return LocalFolder(Path(where), patience)
    filesystem, path = open_filesystem(where)
    return RemoteFolder(filesystem, path, where.rstrip("/"))


def _cannot_write(what: str, error: Exception) -> str:
    return (
        f"{what} cannot be written: {error}; what was committed stays, and the same command continues from there once "
        "there is room and permission"
    )
