"""Tables of items: what is read and refused, and how a table that serves is followed and replaced."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import typer

from recommender.catalogue.attributes.errors import TableError
from recommender.catalogue.attributes.evaluating import evaluate
from recommender.catalogue.attributes.filters import Filter
from recommender.catalogue.attributes.opening import open_tables, reader
from recommender.catalogue.attributes.reading import read_table
from recommender.catalogue.attributes.syntax import parse
from recommender.catalogue.attributes.tables import FollowedTables
from recommender.cli.clients.tables import check
from recommender.errors import DeadlineError, InvalidRequestError, StartError
from recommender.settings.catalogue import CatalogueSettings

CSV = (
    "key,price,stock,new,since,brand\na,1.5,2,true,2026-01-31T00:00:00Z,x\nb,,,,,\nc,2,0,false,2025-01-31T00:00:00Z,y\n"
)
JSONL = """\
{"key": "a", "price": 1.5, "stock": 2, "new": true, "since": "2026-01-31T00:00:00Z", "brand": "x", "tags": ["s", "t"]}
{"key": "b", "tags": []}
{"key": "c", "price": 2.0, "stock": 0, "new": false, "since": "2025-01-31T00:00:00Z", "brand": "y"}
"""


def parquet(path: Path, **columns: Any) -> Path:
    pa.parquet.write_table(pa.table(columns), path)
    return path


def selected(path: Path, text: str, **parameters: Any) -> list[str]:
    table = read_table(path)
    return [
        key for key, held in zip(table.keys.to_pylist(), evaluate(parse(text), table, parameters), strict=False) if held
    ]


@pytest.mark.parametrize(("name", "text"), [("items.csv", CSV), ("items.jsonl", JSONL)])
def test_a_table_of_text_has_the_types_of_its_values(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    kinds = dict(read_table(path).kinds)
    if name == "items.jsonl":
        assert kinds.pop("tags") == "list of strings"
        assert selected(path, "'t' in item.tags || item.price == 2.0") == ["a", "c"]
        assert selected(path, "has(item.tags)") == ["a", "b"]
    assert kinds == {"price": "double", "stock": "int", "new": "bool", "since": "timestamp", "brand": "string"}
    assert selected(path, "item.stock > 0 && item.new && item.brand == 'x'") == ["a"]
    assert selected(path, "!has(item.price)") == ["b"]
    assert selected(path, "item.since > timestamp('2025-12-31T00:00:00Z')") == ["a"]


def test_a_table_in_parquet_may_have_any_width_of_its_types(tmp_path: Path) -> None:
    moments = [datetime(2026, 1, 1, tzinfo=UTC), None]
    path = parquet(
        tmp_path / "items.parquet",
        key=pa.array([7, 8]),
        small=pa.array([1, None], pa.int8()),
        half=pa.array([0.5, float("nan")], pa.float32()),
        coded=pa.array(["x", None]).dictionary_encode(),
        large=pa.array(["y", "z"], pa.large_string()),
        day=pa.array(moments, pa.date32()),
        nanos=pa.array(moments, pa.timestamp("ns")),
        lists=pa.array([None, ["x", None]], pa.large_list(pa.large_string())),
    )
    assert selected(path, "item.small == 1 && item.half == 0.5 && item.coded == 'x' && item.large == 'y'") == ["7"]
    assert selected(path, "item.day == item.nanos && !has(item.lists)") == ["7"]
    assert selected(path, "'x' in item.lists && !has(item.half)") == ["8"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("items.csv", "id,price\n1,2\n", "its first column is 'id', and must be 'key'; a table by id is that of one"),
        ("items.csv", "key,price\na,1\na,2\n", "the key 'a' occurs twice"),
        ("items.csv", "key,price\n,1\n", "row 1 has no key"),
        ("items.csv", "key,price\n", "it has no rows"),
        ("items.csv", "", "cannot be read"),
        ("items.csv", "key,the price\na,1\n", "column 'the price': a name is letters"),
        ("items.csv", "key,price,price\na,1,2\n", "column 'price' occurs twice"),
        ("items.csv", "key,price\na,\n", "column 'price' has no values, so it has no type"),
        ("items.csv", "key,price\na,1,2\n", "cannot be read"),
        (
            "items.jsonl",
            '{"key": "a", "size": {"width": 1}}',
            "column 'size' is struct<width: int64>, and an attribute",
        ),
        ("items.jsonl", '{"key": "a", "sizes": [1, 2]}', "column 'sizes' is list<"),
        ("items.jsonl", '{"key": "a"', "cannot be read"),
        ("items.parquet", "PAR1", "cannot be read"),
        ("items.xls", "", "a table is a .parquet, .csv or .jsonl file, not .xls"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str, why: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TableError) as refused:
        read_table(path)
    assert str(path) in str(refused.value)
    assert why in str(refused.value)


def test_a_key_of_digits_is_a_string(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("key,price\n007,1\n7,2\n", encoding="utf-8")
    assert selected(path, "item.price == 1") == ["007"]


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        read_table(tmp_path / "items.csv")


def ids_of(*keys: str) -> Callable[[Any], list[int | None]]:
    known = {key: item for item, key in enumerate(keys)}
    return lambda wanted: [known.get(key) for key in wanted]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (a file is followed by looking at it)
            await asyncio.sleep(0.01)


async def test_a_table_is_replaced_while_it_serves_and_a_bad_one_is_not(tmp_path: Path) -> None:
    path = parquet(tmp_path / "items.parquet", key=["a", "b", "gone"], price=[1.0, 2.0, 3.0])
    tables = FollowedTables(path, interval=0.01, cache_bytes=1 << 20)
    await tables.start()
    version = tables.attributes(ids_of("a", "never", "b", "unknown"), 4, frozenset({1}))
    cheap, unpriced = Filter("item.price < 2.5"), Filter("!has(item.price)")
    await version.prepare(cheap)
    await version.prepare(cheap)
    assert version.mask(cheap).ids().tolist() == [0, 2]
    assert version.mask(unpriced).ids().tolist() == [3]
    assert (tables.statistics().rows, tables.statistics().ready, tables.statistics().evaluated) == (3, 1, 1)

    (tmp_path / "new").write_text("PAR1")
    (tmp_path / "new").replace(path)
    await until(lambda: tables.statistics().stale)
    assert version.mask(cheap).ids().tolist() == [0, 2]

    parquet(tmp_path / "new", key=["unknown", "b"], price=[1, 2]).replace(path)
    await until(lambda: tables.statistics().replaced == 1)
    assert not tables.statistics().stale
    await version.prepare(cheap)
    assert version.mask(cheap).ids().tolist() == [2, 3]
    assert tables.attributes(ids_of("unknown"), 1, frozenset()).mask(cheap).ids().tolist() == [0]
    await tables.close()


async def test_parameters_that_python_takes_for_equal_are_different_filters(tmp_path: Path) -> None:
    tables = FollowedTables(
        parquet(tmp_path / "items.parquet", key=["a", "b"], new=[True, False]), interval=60, cache_bytes=1 << 20
    )
    await tables.start()
    version = tables.attributes(ids_of("a", "b"), 2, frozenset())
    text = "item.new == params.new"
    await version.prepare(Filter(text, (("new", "bool", True),)))
    with pytest.raises(InvalidRequestError, match="a bool is compared with an int"):
        await version.prepare(Filter(text, (("new", "int64", 1),)))
    assert version.mask(Filter(text, (("new", "bool", True),))).ids().tolist() == [0]
    await tables.close()


async def test_filters_beyond_the_cache_are_evaluated_again_and_late_ones_told(tmp_path: Path) -> None:
    path = parquet(tmp_path / "items.parquet", key=["a", "b", "c"], price=[0, 1, 2])
    tables = FollowedTables(path, interval=60, cache_bytes=2_000)
    await tables.start()
    version = tables.attributes(ids_of("a", "b", "c"), 3, frozenset())
    filters = [Filter(f"item.price > {least}") for least in range(8)]
    await asyncio.gather(*map(version.prepare, [*filters, *filters]))
    assert tables.statistics().evaluated == 8
    dropped = tables.statistics().evicted
    assert 0 < dropped < 8
    assert [version.mask(each).count for each in filters] == [2, 1, 0, 0, 0, 0, 0, 0]
    await version.prepare(filters[0])
    assert tables.statistics().evaluated == 9
    assert tables.statistics().evicted == dropped + 1
    with pytest.raises(DeadlineError):
        await version.prepare(Filter("item.price > 100"), deadline=0.0)
    await tables.close()


async def test_what_was_prepared_is_not_evaluated_again_while_it_is_kept(tmp_path: Path) -> None:
    path = parquet(tmp_path / "items.parquet", key=["a", "b", "c"], price=[0, 1, 2])
    tables = FollowedTables(path, interval=0.01, cache_bytes=2_000)
    await tables.start()
    version = tables.attributes(ids_of("a", "b", "c"), 3, frozenset())
    filters = [Filter(f"item.price > {least}") for least in range(8)]
    kept = [await version.prepare(each) for each in filters]
    assert all(version.mask(each) is mask for each, mask in zip(filters, kept, strict=True))

    parquet(tmp_path / "new", key=["a"], price=[9]).replace(path)
    await until(lambda: tables.statistics().replaced == 1)
    assert all(version.mask(each) is mask for each, mask in zip(filters, kept, strict=True))
    assert (await version.prepare(filters[0])).ids().tolist() == version.mask(filters[0]).ids().tolist() == [0]
    await tables.close()


def test_a_table_is_checked_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "items.csv"
    path.write_text(CSV, encoding="utf-8")
    check(path)
    told = capsys.readouterr().out
    assert f"{path}: 3 items" in told
    assert "  price: double, missing for 1" in told
    path.write_text("id\n1\n", encoding="utf-8")
    with pytest.raises(typer.Exit) as refused:
        check(path)
    assert refused.value.exit_code == 2
    assert "its first column is 'id'" in capsys.readouterr().err


def test_without_the_libraries_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recommender.catalogue.attributes.tables", "recommender.catalogue.attributes.reading"):
        monkeypatch.setitem(sys.modules, name, None)
    for needs in (lambda: open_tables(CatalogueSettings(items=tmp_path / "items.csv")), reader):
        with pytest.raises(StartError, match=re.escape("install the extra recommender[catalogue]")):
            needs()
    assert open_tables(CatalogueSettings()) is None


_GROWTH = """
import sys
from pathlib import Path
from recommender.catalogue.attributes.reading import read_table
from recommender.engine.machine import memory_growth, resident_memory
read_table(Path(sys.argv[1]))
before = resident_memory()
table = read_table(Path(sys.argv[2]))
print(memory_growth(before))
"""


@pytest.mark.slow
def test_a_million_items_with_ten_columns_take_less_than_200_mb(tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), 1_000_000
    words = np.array([f"word {number}" for number in range(5_000)])
    lengths = np.concatenate([[0], np.cumsum(random.integers(0, 5, rows))]).astype(np.int32)
    columns = {
        "key": [f"item {number}" for number in range(rows)],
        "price": random.random(rows),
        "rating": random.random(rows),
        "stock": random.integers(0, 50, rows),
        "views": random.integers(0, 1_000_000, rows),
        "new": random.random(rows) < 0.1,
        "since": pa.array(random.integers(0, 2_000_000_000, rows), pa.timestamp("s", "UTC")),
        **{name: words[random.integers(0, 5_000, rows)] for name in ("brand", "category", "country")},
        "tags": pa.ListArray.from_arrays(lengths, pa.array(words[random.integers(0, 200, lengths[-1])])),
    }
    paths = [parquet(tmp_path / "some.parquet", key=["a"], price=[1.0]), parquet(tmp_path / "all.parquet", **columns)]
    ran = subprocess.run(
        [sys.executable, "-c", _GROWTH, *map(str, paths)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(ran.stdout) < 200_000_000
