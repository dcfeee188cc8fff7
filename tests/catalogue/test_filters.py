"""Filters over columns against the CEL library's own evaluation, row by row; and what is refused, with its place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from cel_expr_python import cel
from google.protobuf import timestamp_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.catalogue.attributes.evaluating import compare, evaluate
from recommender.catalogue.attributes.reading import read_table
from recommender.catalogue.attributes.syntax import parse
from recommender.catalogue.attributes.table import ItemTable
from recommender.errors import InvalidRequestError

WORDS = ("a", "b", "é", "aa", "")
MOMENTS = tuple(datetime(year, 5, 1, 12, tzinfo=UTC) for year in (1969, 2024, 2026))
PARAMETERS: dict[str, Any] = {"p": 2, "q": 2.5, "word": "b", "words": ("a", "é"), "numbers": (1, 3), "yes": True}
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "price": pa.float64(),
        "stock": pa.int64(),
        "brand": pa.string(),
        "maker": pa.string(),
        "new": pa.bool_(),
        "since": pa.timestamp("ms", "UTC"),
        "tags": pa.list_(pa.string()),
    }
)

_rows = st.lists(
    st.fixed_dictionaries(
        {
            "price": st.sampled_from([None, 0.0, -1.5, 2.0, 2.5, 1e300]),
            "stock": st.sampled_from([None, 0, 2, 3, -7, 2**60 + 1]),
            "brand": st.sampled_from([None, *WORDS]),
            "maker": st.sampled_from([None, *WORDS]),
            "new": st.sampled_from([None, True, False]),
            "since": st.sampled_from([None, *MOMENTS]),
            "tags": st.one_of(st.none(), st.lists(st.sampled_from(WORDS), max_size=3)),
        }
    ),
    min_size=1,
    max_size=12,
)

_order = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
_number = st.sampled_from(["item.price", "item.stock", "params.p", "params.q", "2", "2.0", "-1.5", "2.25", "3"])
_string = st.sampled_from(["item.brand", "item.maker", "params.word", '"a"', '"é"', '"none of them"'])
_moment = st.sampled_from(["item.since", 'timestamp("2024-05-01T12:00:00Z")', "timestamp(0)"])
_truth = st.sampled_from(["item.new", "true", "params.yes"])
_names = ["price", "stock", "brand", "new", "since", "tags"]
_predicate = st.one_of(
    *(st.tuples(side, _order, side).map(" ".join) for side in (_number, _string, _moment)),
    st.tuples(_truth, st.sampled_from(["==", "!="]), _truth).map(" ".join),
    _truth,
    st.sampled_from(_names).map("has(item.{})".format),
    st.tuples(_string.filter(lambda side: "item" not in side), st.just("in item.tags")).map(" ".join),
    st.tuples(_string, st.sampled_from(['in ["a", params.word]', "in params.words", "in []"])).map(" ".join),
    st.tuples(_number, st.sampled_from(["in [2, 2.5, -7]", "in params.numbers", "in [3]"])).map(" ".join),
)
_filters = st.recursive(
    _predicate,
    lambda inner: st.one_of(
        inner.map("!({})".format),
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda parts: "({} {} {})".format(*parts)),
    ),
    max_leaves=6,
)


def table_of(folder: Path, rows: list[dict[str, Any]]) -> ItemTable:
    path = folder / "items.parquet"
    pa.parquet.write_table(
        pa.Table.from_pylist([{"key": str(place), **row} for place, row in enumerate(rows)], SCHEMA), path
    )
    return read_table(path)


def by_the_library(text: str, row: dict[str, Any]) -> bool:
    item = {name: value for name, value in row.items() if value is not None}
    if "since" in item:
        since = timestamp_pb2.Timestamp()
        since.FromDatetime(item["since"])
        item["since"] = since
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in PARAMETERS.items()}
    return cel.NewEnv().compile(text, disable_check=True).eval(data={"item": item, "params": given}).value() is True


@settings(max_examples=150, deadline=None)
@given(text=_filters, rows=_rows)
def test_a_filter_selects_what_the_library_selects_row_by_row(
    tmp_path_factory: pytest.TempPathFactory, text: str, rows: list[dict[str, Any]]
) -> None:
    table = table_of(tmp_path_factory.mktemp("t"), rows)
    selected = evaluate(parse(text), table, PARAMETERS)
    assert selected.tolist() == [by_the_library(text, row) for row in [*rows, {}]]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    value=st.one_of(st.integers(), st.floats(allow_nan=False), st.integers().map(float)),
    function=st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
)
def test_whole_numbers_and_others_are_compared_exactly(values: list[int], value: float, function: str) -> None:
    right = {
        "==": lambda left: left == value,
        "!=": lambda left: left != value,
        "<": lambda left: left < value,
        "<=": lambda left: left <= value,
        ">": lambda left: left > value,
        ">=": lambda left: left >= value,
    }[function]
    assert compare(f"_{function}_", np.array(values, np.int64), value).tolist() == list(map(right, values))
    floats = [float(each) for each in values]
    assert compare(f"_{function}_", np.array(floats), value).tolist() == list(map(right, floats))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ItemTable:
    return table_of(
        tmp_path_factory.mktemp("t"), [{"price": 1.0, "stock": 2, "brand": "a", "tags": ["a"], "new": True}]
    )


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("item.price >", 13, "Syntax error"),
        ("item.price > 1 &&\n item.stock <> 2", 32, "Syntax error"),
        ("", 1, "Syntax error"),
        ("price > 1", 1, "'price' is unknown: write an attribute as item.NAME"),
        ("true && item.prise > 1", 9, "no attribute 'prise': did you mean 'price'?"),
        ("has(item.xyz)", 4, "no attribute 'xyz': there are brand, maker, new, price"),
        ("item.price > params.q2", 14, "there is no parameter 'q2': did you mean 'q'?"),
        ("item.brand > 1", 12, "a string is compared with an int"),
        ("item.since < '2024-01-01T00:00:00Z'", 12, "a timestamp is compared with a string"),
        ("item.new < true", 10, "bools have no order"),
        ("item.tags == params.words", 11, "a list of strings is not compared"),
        ("'a' in item.brand", 8, "`in` takes a list, and this is a string"),
        ("1 in item.tags", 3, "an int is sought in a list of strings"),
        ("item.brand in item.tags", 12, "a string is sought in a list of strings: name one string"),
        ("item.brand in ['a', 1]", 12, "a string is sought in a list that has an int"),
        ("item.stock", 1, "a filter is true or false, and this is an int"),
        ("(item.new) == (item.new == true)", 25, "a predicate cannot be compared"),
        ("item.price + 1.0 > 2.0", 12, "+ is not for filters"),
        ("item.tags.exists(t, t == 'a')", 17, "a filter has comparisons"),
        ("item.price > null", 14, "a value is a bool"),
        ("item.since < timestamp('soon')", 23, "'soon' is no time"),
        ("item.since < timestamp(1.5)", 23, "timestamp() takes a string"),
        ("(" * 200 + "true" + ")" * 200, 1, "nested too deep"),
        (" || ".join(["item.new"] * 600), 2981, "too complex: more than 500"),
    ],
)
def test_what_is_wrong_with_a_filter_is_told_with_its_place(table: ItemTable, text: str, at: int, why: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        evaluate(parse(text), table, PARAMETERS)
    (violation,) = refused.value.violations
    assert violation.field == "filter"
    assert why in violation.description
    assert violation.description.startswith(f"at character {at}: ")
