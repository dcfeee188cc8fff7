"""Attributes that calls give to new items, as a table of the same columns as the one in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recommender.catalogue.attributes.evaluating import nearest
from recommender.catalogue.attributes.table import Column, ItemTable, Lists, Numbers, Strings
from recommender.errors import quoted
from recommender.new_items import AttributeValues

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_TYPES: Final[Mapping[str, Any]] = {"bool": np.bool_, "int": np.int64, "double": np.float64, "timestamp": np.int64}


def added_table(rows: Sequence[AttributeValues], like: ItemTable) -> ItemTable:
    """A table of rows with these attributes; a value that is not of its column's type is missing."""
    columns = {name: _column([row.get(name) for row in rows], column) for name, column in like.columns.items()}
    return ItemTable(columns, pa.nulls(len(rows), pa.string()), "")


def value_of(given: object, kind: str) -> bool | int | float | str | list[str] | None:
    """A value as a column of this kind holds it; None if it is not of that kind."""
    value: bool | int | float | str | list[str] | None = None
    if isinstance(given, bool):
        value = given if kind == "bool" else None
    elif isinstance(given, int) and kind == "int":
        value = given
    elif isinstance(given, int | float) and kind == "double":
        value = float(given)
    elif isinstance(given, str):
        value = _microseconds(given) if kind == "timestamp" else given if kind == "string" else None
    elif isinstance(given, list) and kind == "list of strings":
        value = given if all(isinstance(each, str) for each in given) else None
    return value


def faults_of(given: AttributeValues, table: ItemTable) -> Iterator[tuple[str, str]]:
    """Those of an item's attributes that a table does not have, or not of that type, each with why."""
    kinds = table.kinds
    for name, value in given.items():
        kind = kinds.get(name)
        if kind is None:
            yield name, f"the table of items has no attribute {quoted(name)}{nearest(name, kinds)}"
        elif value_of(value, kind) is None:
            yield name, f"{quoted(value)} is no {kind}, which it is in the table of items"


def _column(given: Sequence[object], like: Column) -> Column:
    kind = like.kind
    values = [None if each is None else value_of(each, kind) for each in given]
    values.append(None)  # of what is not known at all
    present = np.array([value is not None for value in values], np.bool_)
    if isinstance(like, Numbers):
        filled = [0 if value is None else value for value in values]
        return Numbers(like.kind, np.array(filled, _TYPES[kind]), present)
    words: dict[str, int] = {}
    if isinstance(like, Strings):
        codes = [-1 if value is None else words.setdefault(str(value), len(words)) for value in values]
        return Strings(pa.array(words, pa.string()), np.array(codes, np.int32))
    lists = [value if isinstance(value, list) else [] for value in values]
    codes = [words.setdefault(word, len(words)) for each in lists for word in each]
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(each) for each in lists], out=offsets[1:])
    return Lists(pa.array(words, pa.string()), np.array(codes, np.int32), offsets, present)


def _microseconds(text: str) -> int | None:
    """Microseconds since 1970 of a time in RFC 3339; None if malformed or without an offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else (moment - _EPOCH) // timedelta(microseconds=1)
