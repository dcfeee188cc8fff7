"""Read a table of items from a Parquet, CSV or JSON Lines file, and hold it to its rules.

The first column is `key`, a string for each item, as the model's vocabulary has it; or `id`, in a table that belongs to
one version. Every other one is an attribute: a bool, an int, a double, a timestamp, a string or a list of strings. Any
value of it may be missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from recommender.catalogue.attributes.errors import TableError
from recommender.catalogue.attributes.table import Column, ItemTable, Lists, NumberKind, Numbers, Strings, Truths

KEY, ID = "key", "id"
MOST_COLUMNS = 100
MOST_ROWS = 100_000_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 64
_TYPES = "a bool, an int, a double, a timestamp, a string or a list of strings"


def read_table(path: Path, *, of_version: bool = False) -> ItemTable:
    """Read a table, which may be by id if it is that `of_version`; blocks.

    Raises TableError, which names the file and says what is wrong with it.
    """
    before = signature(path)
    digest = _digest(path)
    try:
        columns = dict(_columns(path, of_version=of_version))
    except TableError as error:
        raise TableError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from error
    if signature(path) != before:
        raise TableError(f"{path} changed while it was read; write it to another file, and rename that")
    pa.default_memory_pool().release_unused()
    first = next(iter(columns))
    keys = columns.pop(first)
    assert isinstance(keys, pa.Array)  # noqa: S101 (`_columns` begins with them)
    attributes = {name: column for name, column in columns.items() if not isinstance(column, pa.Array)}
    return ItemTable(attributes, keys, digest, by_id=first == ID)


def signature(path: Path) -> tuple[int, ...]:
    """A stamp that changes when the file is replaced or written to. Raises TableError if it is missing."""
    try:
        found = path.stat()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error


def _columns(path: Path, *, of_version: bool) -> Iterator[tuple[str, Column | pa.Array]]:
    """The keys or ids, then each column, one by one, so that the file's own form is never in memory as a whole."""
    names, rows, column = _open(path)
    _check_names(names, of_version=of_version)
    if not rows:
        raise TableError("it has no rows")
    if rows > MOST_ROWS:
        raise TableError(f"it has {rows} rows, and {MOST_ROWS} are the most")
    yield names[0], _keys(column(KEY)) if names[0] == KEY else _ids(column(ID))
    pool = pa.default_memory_pool()
    for name in names[1:]:
        # Arrow keeps the memory of the last column, which the next one may not fit into: more than the table takes.
        pool.release_unused()
        values = column(name)
        try:
            yield name, _typed(values)
        except TableError as error:
            raise TableError(f"column {name!r} {error}") from error
        except pa.ArrowException as error:
            raise TableError(f"column {name!r} cannot be read as {values.type}: {error}") from error


def _open(path: Path) -> tuple[list[str], int, Callable[[str], pa.Array]]:
    """The names of the columns, the number of rows, and how to get the values of a column."""
    match path.suffix.lower():
        case ".parquet":
            file = pa.parquet.ParquetFile(path)
            names = file.schema_arrow.names

            def column(name: str) -> pa.Array:
                return _whole(file.read(columns=[name], use_threads=False).column(0))

            return names, file.metadata.num_rows, column
        case ".csv":
            options = pa.csv.ConvertOptions(strings_can_be_null=True, column_types={KEY: pa.string()})  # 007 is a key
            table = pa.csv.read_csv(path, convert_options=options)
        case ".jsonl" | ".ndjson":
            table = pa.json.read_json(path)
        case other:
            raise TableError(f"a table is a .parquet, .csv or .jsonl file, not {other or 'one without a suffix'}")
    return table.column_names, table.num_rows, lambda name: _whole(table.column(name))


def _whole(chunked: pa.ChunkedArray) -> pa.Array:
    combined = chunked.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _check_names(names: list[str], *, of_version: bool) -> None:
    if not names or names[0] not in ((KEY, ID) if of_version else (KEY,)):
        must = f"{KEY!r} or {ID!r}" if of_version else f"{KEY!r}"
        advice = (
            "; a table by id is that of one model version: list it in the card (`recommender export --items-table`), "
            "or give the keys of the vocabulary instead"
            if names and names[0] == ID
            else ""
        )
        raise TableError(f"its first column is {names[0] if names else None!r}, and must be {must}{advice}")
    if len(names) > MOST_COLUMNS:
        raise TableError(f"it has {len(names)} columns, and {MOST_COLUMNS} are the most")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise TableError(f"column {name!r} occurs twice")
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise TableError(
                f"column {name!r}: a name is letters, digits and underscores, no digit first, {_LONGEST_NAME} at most"
            )


def _keys(values: pa.Array) -> pa.Array:
    """The keys of the rows, each as a separate string."""
    if pa.types.is_integer(values.type) or pa.types.is_dictionary(values.type):
        values = values.cast(pa.string())
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TableError(f"column {KEY!r} is {values.type}, and keys are strings")
    empty = pc.fill_null(pc.equal(values, ""), True)  # noqa: FBT003 (the value for a missing one)
    if pc.any(empty).as_py():
        raise TableError(f"row {pc.index(empty, True).as_py() + 1} has no key")
    _check_once(values, KEY)
    return values


def _ids(values: pa.Array) -> pa.Array:
    """The ids of the rows, int64, each of them once and none below 0."""
    if not pa.types.is_integer(values.type):
        raise TableError(f"column {ID!r} is {values.type}, and ids are whole numbers")
    values = values.cast(pa.int64())
    wrong = pc.fill_null(pc.less(values, 0), True)  # noqa: FBT003 (the value for a missing one)
    if pc.any(wrong).as_py():
        raise TableError(f"row {pc.index(wrong, True).as_py() + 1} has no id from 0 on")
    _check_once(values, ID)
    return values


def _check_once(values: pa.Array, what: str) -> None:
    counts = pc.value_counts(values)
    if len(counts) < len(values):
        twice = counts.field(0)[pc.index(pc.greater(counts.field(1), 1), True).as_py()].as_py()
        raise TableError(f"the {what} {twice!r} occurs twice")


def _typed(values: pa.Array) -> Column:
    """A column with a missing value behind the last."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words, codes = _coded(values)
        return Strings(words, np.append(codes, np.int32(-1)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(values)
    if pa.types.is_boolean(kind):
        return _numbers("bool", values.fill_null(False), values)  # noqa: FBT003
    if pa.types.is_integer(kind):
        return _numbers("int", values.cast(pa.int64()).fill_null(0), values)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = _numbers("double", values.cast(pa.float64()).fill_null(0.0), values)
        return Numbers("double", column.values, column.present & ~np.isnan(column.values))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        moments = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        return _numbers("timestamp", moments.cast(pa.int64()).fill_null(0), values)
    if pa.types.is_null(kind):
        raise TableError("has no values, so it has no type: leave it out")
    raise TableError(f"is {kind}, and an attribute is {_TYPES}")


def _numbers(kind: NumberKind, filled: pa.Array, values: pa.Array) -> Numbers:
    numbers = filled.to_numpy(zero_copy_only=False)
    return Numbers(kind, np.append(numbers, numbers.dtype.type(0)), _present(values))


def _present(values: pa.Array) -> Truths:
    return np.append(values.is_valid().to_numpy(zero_copy_only=False), np.False_)


def _coded(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The different strings, and the place of each row's among them, -1 for none."""
    if pa.types.is_large_string(values.type):
        values = values.cast(pa.string())
    encoded: Any = values.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return encoded.dictionary, codes.astype(np.int32, copy=False)


def _lists(values: pa.Array) -> Lists:
    if not (pa.types.is_string(values.type.value_type) or pa.types.is_large_string(values.type.value_type)):
        raise TableError(f"is {values.type}, and an attribute is {_TYPES}")
    present = _present(values)
    words, codes = _coded(values.flatten())  # without the values under missing lists
    lengths = np.where(present[:-1], pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False), 0)
    offsets = np.zeros(len(values) + 2, np.int64)
    np.cumsum(lengths, out=offsets[1:-1])
    offsets[-1] = offsets[-2]
    return Lists(words, codes, offsets, present)
