"""Read files of new items: a key, a vector, perhaps a bias, and attributes under the names of the table of items."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from recommender.catalogue.attributes.errors import TableError
from recommender.new_items import AttributeValues

_ROWS_AT_ONCE = 1_000


class NewRow(NamedTuple):
    """A new item as a file has it."""

    key: str
    vector: list[float]
    bias: float
    attributes: AttributeValues


def read_rows(path: Path) -> Iterator[NewRow]:
    """Read the rows of a Parquet or JSONL file, one after the other. Raises TableError, which says where it is wrong.

    A missing attribute is left out; a time is given in RFC 3339, and has no offset only where it is in UTC.
    """
    try:
        for number, row in enumerate(_rows(path), 1):
            yield _row(row, f"{path}, row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from error


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    match path.suffix.lower():
        case ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                    yield from batch.to_pylist()
        case ".jsonl" | ".ndjson":
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise TableError(f"{path}, line {number}, is no JSON: {error}") from error
                    if not isinstance(row, dict):
                        raise TableError(f"{path}, line {number}, is no object")
                    yield row
        case other:
            raise TableError(
                f"{path}: new items stand in a .parquet or .jsonl file, not {other or 'one without suffix'}"
            )


def _row(row: Mapping[str, Any], where: str) -> NewRow:
    key, vector, bias = row.get("key"), row.get("vector"), row.get("bias")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key:
        raise TableError(f"{where} has no `key`")
    if not isinstance(vector, list) or not vector or not all(map(_is_number, vector)):
        raise TableError(f"{where}, {key!r}, has no `vector`: a list of numbers")
    if bias is not None and not _is_number(bias):
        raise TableError(f"{where}, {key!r}: its `bias` is no number")
    others = {name: _attribute(value) for name, value in row.items() if name not in ("key", "vector", "bias")}
    return NewRow(key, vector, bias or 0.0, {name: value for name, value in others.items() if value is not None})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _attribute(value: Any) -> Any:  # noqa: ANN401 (of any type that Arrow or JSON gives; the server checks it)
    """A value as a call takes it."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).isoformat()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
