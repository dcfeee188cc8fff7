"""Text files as tables: CSV and JSON lines. A line that is no row becomes a row with its fault."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from recommender.bulk.columns import FAULT, LISTS_OF_IDS, LISTS_OF_KEYS
from recommender.bulk.errors import BulkError

_ROWS = 8192
_BLOCK_BYTES = 4 << 20
_LONGEST_LINE = 64 << 20
_SHOWN = 60
_SCALARS = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
"""The types of columns of single values; others are text."""


def csv_tables(stream: pa.NativeFile, path: str) -> Iterator[pa.Table]:
    """Read a CSV file with a header, in UTF-8. All columns are text. Raises BulkError if it has no header."""
    text = io.TextIOWrapper(io.BufferedReader(stream, _BLOCK_BYTES), encoding="utf-8-sig", errors="replace", newline="")
    csv.field_size_limit(_LONGEST_LINE)
    reader = csv.reader(text)
    try:
        header = next(reader, [])
        if not header or len(set(header)) < len(header):
            raise BulkError(f"{path} has no header of different names in its first line: {header}")
        while rows := list(islice(reader, _ROWS)):
            yield _table_of(rows, header)
    except csv.Error as error:
        raise BulkError(f"{path}, line {reader.line_num}: {error}") from error


def _table_of(rows: Sequence[Sequence[str]], header: Sequence[str]) -> pa.Table:
    width = len(header)
    whole = [row if len(row) == width else [""] * width for row in rows if row]
    told = [
        None if len(row) == width else f"the line has {len(row)} fields and the header {width}" for row in rows if row
    ]
    columns = [pa.array([each or None for each in column], pa.string()) for column in zip(*whole, strict=True)]
    if not columns:
        columns = [pa.nulls(0, pa.string()) for _ in header]
    return pa.table([*columns, pa.array(told, pa.string())], names=[*header, FAULT])


def jsonl_tables(stream: pa.NativeFile, path: str) -> Iterator[pa.Table]:
    """Read a file of JSON objects, one a line. Raises BulkError if its first line is not one."""
    schema: pa.Schema | None = None
    for block in _blocks(stream, path):
        if schema is None:
            schema = _schema_of(block, path)
        try:
            options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            read = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)
            table = pajson.read_json(io.BytesIO(block), read_options=read, parse_options=options)
            if len(table) != block.count(b"\n"):  # an empty line, or two objects in one
                table = _line_by_line(block, schema)
        except pa.ArrowInvalid:
            table = _line_by_line(block, schema)
        yield table if FAULT in table.column_names else table.append_column(FAULT, pa.nulls(len(table), pa.string()))


def _blocks(stream: pa.NativeFile, path: str) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time, each with its end."""
    rest = b""
    while piece := stream.read(_BLOCK_BYTES):
        lines, newline, tail = piece.rpartition(b"\n")
        if newline:
            yield rest + lines + newline
            rest = tail
        else:
            rest += tail
        if len(rest) > _LONGEST_LINE:
            raise BulkError(f"{path} has a line of more than {_LONGEST_LINE >> 20} MB: is it a file of JSON lines?")
    if rest:
        yield rest + b"\n"


def _schema_of(block: bytes, path: str) -> pa.Schema:
    """The columns of a file, by its first object and what columns of their names hold."""
    first = next((line for line in block.splitlines() if line.strip()), b"")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise BulkError(f"{path} does not begin with a JSON object: {first[:_SHOWN]!r}")
    return pa.schema([(name, _type_of(name, value)) for name, value in row.items()])


def _type_of(name: str, value: Any) -> pa.DataType:  # noqa: ANN401 (any JSON value)
    if isinstance(value, list):
        texts = any(isinstance(each, str) for each in value) or (not value and name in LISTS_OF_KEYS)
        numbers = pa.float64() if any(isinstance(each, float) for each in value) else pa.int64()
        return pa.list_(pa.string() if texts else numbers)
    if name in LISTS_OF_IDS:
        return pa.list_(pa.int64())
    if name in LISTS_OF_KEYS:
        return pa.list_(pa.string())
    return _SCALARS.get(type(value), pa.string())


def _line_by_line(block: bytes, schema: pa.Schema) -> pa.Table:
    """Parse lines of which some are malformed or not of the file's types."""
    rows: list[dict[str, Any]] = []
    for line in block.split(b"\n")[:-1]:
        fault, row = None, {}
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not an object")  # noqa: TRY004, TRY301 (a fault of the line as any other)
            row = {name: pa.scalar(row.get(name), kind).as_py() for name, kind in zip(schema.names, schema.types)}  # noqa: B905
        except (ValueError, pa.ArrowException) as error:
            fault, row = f"the line is not a row: {str(error)[:_SHOWN]}", {}
        rows.append({**row, FAULT: fault})
    columns = [[row.get(name) for row in rows] for name in chain(schema.names, [FAULT])]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, [*schema.types, pa.string()], strict=True)]
    return pa.table(arrays, names=[*schema.names, FAULT])
