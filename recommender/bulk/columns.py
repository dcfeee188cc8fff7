"""Which columns of a table mean what, and their values in one form: ids as int64, keys as text, lists as lists.

A column is called as the request's field, unless an option names another. A column that has the name of a field which
bulk scoring does not take is refused: to ignore it would give answers to another question.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recommender.bulk.errors import BulkError
from recommender.recommend_api.v1 import recommend_api_pb2 as api

FAULT = "\0fault"
"""Text of what is wrong with a line that could not be read; null in rows that could."""
FEATURE = "feature:"
"""Prefix of the names of features."""
_USER_NAMES = ("user", "user_id", "user_key")
LISTS_OF_IDS = ("item_ids", "excluded_item_ids", "candidate_item_ids", "history_type_ids", "history_times")
LISTS_OF_KEYS = ("item_keys", "excluded_item_keys", "candidate_item_keys", "history_type_keys")
_EITHER = (
    ("item_ids", "item_keys"),
    ("excluded_item_ids", "excluded_item_keys"),
    ("candidate_item_ids", "candidate_item_keys"),
    ("history_type_ids", "history_type_keys"),
)
"""Only one of two says what is meant."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The name of the column for each part of a request; None if the table has none.

    `user` is given to models that take users, by its id if the column holds whole numbers, else by its key. It is in
    the output in any case.
    """

    user: str | None = None
    item_ids: str | None = None
    item_keys: str | None = None
    limit: str | None = None
    excluded_item_ids: str | None = None
    excluded_item_keys: str | None = None
    candidate_item_ids: str | None = None
    candidate_item_keys: str | None = None
    history_type_ids: str | None = None
    history_type_keys: str | None = None
    history_times: str | None = None
    filter: str | None = None
    filter_parameters: str | None = None
    features: tuple[str, ...] = ()
    """Columns of features of the model, called as they are."""

    def named(self) -> dict[str, str]:
        """The columns that there are, by what they mean."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "features"}
        found = {meaning: name for meaning, name in found.items() if name is not None}
        return {**found, **{f"{FEATURE}{name}": name for name in self.features}}


def find_columns(
    names: Collection[str],
    chosen: Mapping[str, str],
    ignored: Collection[str] = (),
    features: Collection[str] = (),
) -> Columns:
    """Find the columns of a table for a model with these `features`.

    `chosen` has the columns that options name, by their meaning; `ignored` are looked past.

    Raises BulkError if a chosen column is missing, if there is neither history nor user, or if a column is refused.
    """
    for option, name in chosen.items():
        if name not in names:
            raise BulkError(f"the input has no column {name} (--{option.replace('_', '-')}): it has {_listed(names)}")
    found: dict[str, str] = dict(chosen)
    for each in fields(Columns):
        if each.name not in found and each.name != "features":
            usual = _USER_NAMES if each.name == "user" else (each.name,)
            free = [name for name in usual if name in names and name not in ignored and name not in chosen.values()]
            if free:
                found[each.name] = free[0]
    others = set(names) - set(ignored) - set(found.values())
    columns = Columns(**found, features=tuple(sorted(others.intersection(features))))
    _refuse(others.difference(features))
    if columns.user is None and columns.item_ids is None and columns.item_keys is None:
        raise BulkError(
            f"the input has no column item_ids, item_keys or user: it has {_listed(names)}; "
            "name them with --item-ids, --item-keys or --user"
        )
    for ids, keys in _EITHER:
        if ids in found and keys in found:
            raise BulkError(f"the input has both {found[ids]} and {found[keys]}: leave one out, or give --ignore")
    return columns


def _refuse(others: Collection[str]) -> None:
    fields_of_requests = set(api.RecommendRequest.DESCRIPTOR.fields_by_name) - set(_USER_NAMES)
    for name in sorted(others):
        if name in fields_of_requests:
            raise BulkError(
                f"the input has a column {name}, and bulk scoring does not take it: leave it out, or say "
                f"--ignore {name} to score without it"
            )


def canonical(table: pa.Table, columns: Columns) -> pa.Table:
    """The columns of a table by their meaning, each one array of its one form.

    Text is read as a list of what spaces, commas, semicolons or bars separate. Raises BulkError if a column has a type
    that it cannot have. What is wrong with single rows is in the column FAULT.
    """
    arrays: dict[str, pa.Array] = {}
    faults = [_whole(table.column(FAULT))] if FAULT in table.column_names else []
    for meaning, name in columns.named().items():
        column = _whole(table.column(name))
        if meaning in LISTS_OF_IDS or meaning in LISTS_OF_KEYS:
            arrays[meaning], told = _lists(column, name, meaning)
            faults += told
        elif meaning.startswith(FEATURE):
            arrays[meaning] = column
        elif meaning == "filter":
            arrays[meaning] = _text(column, name)
        elif meaning == "filter_parameters":
            arrays[meaning] = _parameters(column, name)
        elif meaning == "limit":
            arrays[meaning], told = _numbers(column, name)
            faults += told
        else:
            arrays[meaning] = _user(column, name)
    if faults:
        arrays[FAULT] = pc.coalesce(*faults)
    return pa.table(arrays)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # more than one array can hold
        raise BulkError("a column of one part has more than 2 GB: lower --part-rows")
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _lists(column: pa.Array, name: str, meaning: str) -> tuple[pa.ListArray, list[pa.Array]]:
    """A column as lists of int64 or of text, and what is wrong with rows."""
    ids = meaning in LISTS_OF_IDS
    kind = pa.int64() if ids else pa.string()
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.list_(kind)), []
    refused = BulkError(f"column {name} holds {column.type}, not lists of {'whole numbers' if ids else 'text'}")
    if _is_text(column.type):
        return _split(column, meaning)
    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (nested or pa.types.is_fixed_size_list(column.type)):
        raise refused
    inner = column.type.value_type
    if not ((pa.types.is_integer(inner) if ids else _is_text(inner)) or pa.types.is_null(inner)):
        raise refused
    lists = column if column.type == pa.list_(kind) else pc.cast(column, pa.list_(kind), safe=False)
    return lists, _faults(lists, pc.is_null(lists.flatten()), f"{meaning}: an item is null")


def _split(column: pa.Array, meaning: str) -> tuple[pa.ListArray, list[pa.Array]]:
    text = pc.utf8_trim(pc.cast(column, pa.string()), " \t[],;|")
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    lists = pc.split_pattern_regex(text, r"[\s,;|]+")
    if meaning in LISTS_OF_KEYS:
        return lists, []
    items, wrong = _whole_numbers(lists.flatten())
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    absent = lists.is_null() if lists.null_count else None
    told = _faults(lists, wrong, f"{meaning}: an item is not a whole number")
    return pa.ListArray.from_arrays(pa.array(ends), items, mask=absent), told


def _numbers(column: pa.Array, name: str) -> tuple[pa.Array, list[pa.Array]]:
    """A column as int64, and what is wrong with rows."""
    if _is_text(column.type):
        numbers, wrong = _whole_numbers(pc.utf8_trim_whitespace(column))
        return numbers, [pc.if_else(wrong, f"{name}: it is not a whole number", pa.scalar(None, pa.string()))]
    if not (pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise BulkError(f"column {name} holds {column.type}, not whole numbers")
    return pc.cast(column, pa.int64(), safe=False), []


def _whole_numbers(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Parse text as int64: the numbers, with 0 for invalid text, and which texts are invalid.

    A valid text has up to 18 digits.
    """
    wrong = pc.fill_null(pc.invert(pc.match_substring_regex(text, r"^-?[0-9]{1,18}$")), fill_value=False)
    return pc.cast(pc.if_else(wrong, "0", text), pa.int64()), wrong


def _user(column: pa.Array, name: str) -> pa.Array:
    if pa.types.is_integer(column.type):
        return column
    if _is_text(column.type) or pa.types.is_null(column.type):
        return pc.cast(column, pa.string())
    raise BulkError(f"column {name} holds {column.type}: a user is a whole number or text")


def _text(column: pa.Array, name: str) -> pa.Array:
    if not (_is_text(column.type) or pa.types.is_null(column.type)):
        raise BulkError(f"column {name} holds {column.type}, not text")
    return pc.cast(column, pa.string())


def _parameters(column: pa.Array, name: str) -> pa.Array:
    kind = column.type
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return column
    if _is_text(kind) or pa.types.is_null(kind):
        return pc.cast(column, pa.string())
    raise BulkError(f"column {name} holds {kind}: parameters are a struct, a map, or a JSON object as text")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _faults(lists: pa.ListArray, wrong: pa.Array, told: str) -> list[pa.Array]:
    """Return the errors of the rows whose list has a `wrong` item; empty if no row has one."""
    if not pc.any(wrong).as_py():
        return []
    rows = pc.unique(pc.filter(pc.list_parent_indices(lists), wrong))
    guilty = pc.is_in(pa.array(range(len(lists)), rows.type), value_set=rows)
    return [pc.if_else(guilty, told, pa.scalar(None, pa.string()))]


def _listed(names: Collection[str]) -> str:
    shown = sorted(name for name in names if name != FAULT)
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")  # noqa: PLR2004
