"""The files of a job: found, held to what they were at the start, and read as one stream of tables in a fixed order."""

from __future__ import annotations

import contextlib
import fnmatch
import posixpath
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recommender.bulk.columns import FAULT
from recommender.bulk.errors import BulkError
from recommender.bulk.files.lines import csv_tables, jsonl_tables

Kind: TypeAlias = Literal["parquet", "arrow", "csv", "jsonl"]
_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_WILD = "*?["
_READ_ROWS = 16_384
_READ_ITEMS = 1 << 20
"""Values that one read decodes at most, roughly: long histories come in tables of fewer rows."""
_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file as it was found: its size in bytes, and when it was changed, in nanoseconds since the epoch."""

    path: str
    size: int
    modified: int
    kind: Kind

    def facts(self) -> dict[str, object]:
        """The file's facts for the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of a job in their order. It can be pickled."""

    filesystem: pafs.FileSystem
    files: Sequence[InputFile]
    groups: Sequence[Sequence[int]] | None
    """The rows of each file's row groups; None if only reading the file gives them."""

    @property
    def rows(self) -> int | None:
        """The number of rows; None if only reading the files gives it."""
        return None if self.groups is None else sum(map(sum, self.groups))

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.size for file in self.files)

    def names(self) -> list[str]:
        """The columns of the first file. Raises BulkError if it cannot be read."""
        file = self.files[0]
        if file.kind == "parquet":
            with _told(file), self.filesystem.open_input_file(file.path) as source:
                return list(pq.read_schema(source).names)
        for table, _, _ in self._read(file, 0, None):
            return [name for name in table.column_names if name != FAULT]
        return []

    def some(self, first: int, after: int) -> Inputs:
        """The files from place `first` until before place `after`."""
        groups = None if self.groups is None else self.groups[first:after]
        return Inputs(self.filesystem, self.files[first:after], groups)

    def tables(self, skip: int = 0, columns: Collection[str] | None = None) -> Iterator[tuple[pa.Table, int, int]]:
        """The rows after the first `skip`, the place of each table's file, and the bytes read of text so far.

        Of Parquet only these `columns` are read, by default all. Raises BulkError if a file cannot be read, or lacks
        one of them.
        """
        before = 0
        for place, file in enumerate(self.files):
            for table, skipped, read in self._read(file, skip, columns):
                if missing := [name for name in columns or () if name not in table.column_names]:
                    raise BulkError(f"{file.path} has no column {missing[0]}, which other files have")
                skip -= skipped
                if skip >= len(table):
                    skip -= len(table)
                    continue
                yield table.slice(skip), place, before + read
                skip = 0
            before += file.size

    def check(self, place: int) -> None:
        """Raise BulkError if a file is not what it was when the job began."""
        file = self.files[place]
        now = self.filesystem.get_file_info(file.path)
        if not now.is_file or (now.size, _modified(now)) != (file.size, file.modified):
            raise BulkError(
                f"{file.path} has changed since the job began: score it into another folder, or restore the old file"
            )

    def _read(self, file: InputFile, skip: int, columns: Collection[str] | None) -> Iterator[tuple[pa.Table, int, int]]:
        """Tables of one file, each with the rows passed over unread before it (`skip` in all), and the bytes read."""
        with _told(file):
            if file.kind == "parquet":
                yield from self._parquet(file, skip, columns)
            elif file.kind == "arrow":
                yield from self._arrow(file)
            else:
                read = csv_tables if file.kind == "csv" else jsonl_tables
                with self.filesystem.open_input_file(file.path) as stream:
                    for table in read(stream, file.path):
                        yield table, 0, stream.tell()

    def _parquet(
        self, file: InputFile, skip: int, columns: Collection[str] | None
    ) -> Iterator[tuple[pa.Table, int, int]]:
        remote = not isinstance(self.filesystem, pafs.LocalFileSystem)
        buffer = _REMOTE_BUFFER_BYTES if remote else _BUFFER_BYTES
        with (
            self.filesystem.open_input_file(file.path) as source,
            pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False) as opened,
        ):
            metadata = opened.metadata
            groups, skipped = list(range(metadata.num_row_groups)), 0
            while groups and skipped + metadata.row_group(groups[0]).num_rows <= skip:
                skipped += metadata.row_group(groups.pop(0)).num_rows
            if groups:
                names = None if columns is None else list(columns)
                for batch in opened.iter_batches(_rows_of(metadata), row_groups=groups, columns=names):
                    yield pa.Table.from_batches([batch]), skipped, 0
                    skipped = 0
            elif skipped:
                yield opened.schema_arrow.empty_table(), skipped, 0

    def _arrow(self, file: InputFile) -> Iterator[tuple[pa.Table, int, int]]:
        with self.filesystem.open_input_file(file.path) as source:
            try:
                opened = pa.ipc.open_file(source)
                batches = (opened.get_batch(place) for place in range(opened.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                yield pa.Table.from_batches([batch]), 0, source.tell()


@contextlib.contextmanager
def _told(file: InputFile) -> Iterator[None]:
    """Raise a BulkError with the file's path for what goes wrong with it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise BulkError(f"{file.path} cannot be read: {error}") from error


def find_inputs(where: str) -> Inputs:
    """Find the files of a path, a folder, a glob or an address such as s3://bucket/folder, in order of their names.

    Raises BulkError if no file is found, or if they are of several kinds.
    """
    filesystem, path = open_filesystem(where)
    folder = path
    while any(sign in folder for sign in _WILD):
        folder = posixpath.dirname(folder)
    try:
        info = filesystem.get_file_info(folder or ".")
        if info.type == pafs.FileType.NotFound:
            raise BulkError(f"there is no {where}: name a file, a folder or a glob of files")
        inside = pafs.FileSelector(folder or ".", recursive=True)
        found = [info] if info.is_file else filesystem.get_file_info(inside)
    except (OSError, pa.ArrowException) as error:
        raise BulkError(f"{where} cannot be read: {error}") from error
    chosen = [
        each
        for each in found
        if each.is_file
        and (each.path == path if info.is_file else _kind(each.path) is not None and not _hidden(each.path, folder))
        and (folder == path or fnmatch.fnmatchcase(_plain(each.path), _plain(path)))
    ]
    if not chosen:
        raise BulkError(f"{where} has no file to score: they end in {', '.join(_KINDS)}")
    files = []
    for each in sorted(chosen, key=lambda each: each.path):
        kind = _kind(each.path)
        if kind is None:
            raise BulkError(f"{each.path} does not end in any of {', '.join(_KINDS)}")
        files.append(InputFile(each.path, each.size, _modified(each), kind))
    if len({file.kind for file in files}) > 1:
        kinds = ", ".join(sorted({file.kind for file in files}))
        raise BulkError(f"{where} has files of several kinds ({kinds}): name those of one, as with a glob")
    return Inputs(filesystem, tuple(files), _row_groups(filesystem, files))


def open_filesystem(where: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or an address, and the path on it. Raises BulkError for an address of none."""
    if "://" not in where:
        return pafs.LocalFileSystem(), where.rstrip("/") or where
    # An address cannot have the characters of a glob.
    scheme, _, rest = where.partition("://")
    host, _, path = rest.partition("/")
    try:
        filesystem, root = pafs.FileSystem.from_uri(f"{scheme}://{host}")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BulkError(f"{where} cannot be opened: {error}") from error
    return filesystem, posixpath.join(root, path).rstrip("/")


def _row_groups(filesystem: pafs.FileSystem, files: Sequence[InputFile]) -> Sequence[Sequence[int]] | None:
    """The rows of the row groups of each Parquet file; None for other files."""
    if files[0].kind != "parquet":
        return None
    groups = []
    for file in files:
        with _told(file), filesystem.open_input_file(file.path) as source:
            metadata = pq.read_metadata(source)
        groups.append(tuple(metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)))
    return tuple(groups)


def _rows_of(metadata: pq.FileMetaData) -> int:
    """Rows of one read of a Parquet file."""
    values = 0
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        values += max((group.column(column).num_values for column in range(group.num_columns)), default=0)
    rows: int = min(_READ_ROWS, _READ_ITEMS * max(metadata.num_rows, 1) // max(values, 1))
    return max(rows, 1)


def _kind(path: str) -> Kind | None:
    return _KINDS.get(posixpath.splitext(path)[1].lower())


def _hidden(path: str, folder: str) -> bool:
    """Whether a file, or a folder that it is in, is no data by its name, as others that read such folders have it."""
    return any(part.startswith((".", "_")) for part in posixpath.relpath(path, folder or ".").split("/"))


def _plain(path: str) -> str:
    return posixpath.normpath(path)


def _modified(info: pafs.FileInfo) -> int:
    when: int = info.mtime_ns or 0
    return when
