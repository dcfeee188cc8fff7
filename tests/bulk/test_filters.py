"""A column of filters gives what the service gives to requests with these filters."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recommender.bulk import Scorer
from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import Job, JobOptions, Summary
from recommender.bulk.model import open_bulk_model
from recommender.settings.settings import Settings
from tests.support.bulk import assert_same, online, table_of
from tests.support.catalogues import add_fallback, add_vocabulary
from tests.support.hiding import write_list
from tests.support.paths import WEIGHTS
from tests.support.serving import in_a_thread, server_of

ITEMS, K = 10_000, 5
BELOW = "item.price < params.most"
FILTERS: tuple[tuple[str | None, Any], ...] = (
    (None, None),
    ("", None),
    (BELOW, {"most": 12}),
    (BELOW, {"most": 0}),
    (BELOW, {"most": "cheap"}),
    (BELOW, None),
    ("item.brand in params.brands", {"brands": ["brand 1", "none"]}),
    ("!has(item.brand)", None),
    ("item.colour == 'red'", None),
    ("item.price <", None),
    (None, {"most": 1}),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    for name in ("10_model.onnx", "10_model.card.json"):
        shutil.copyfile(WEIGHTS / name, folder / name)
    add_fallback(folder / "10_model.onnx", [7, 3, 11])
    add_vocabulary(folder / "10_model.onnx", [f"v1-{item}" for item in range(ITEMS)])
    return folder / "10_model.onnx"


def prepared(folder: Path) -> dict[str, Any]:
    """Write a table of items, and a list of a hidden one; returns the settings for both."""
    known = range(40)
    table = {"key": [f"v1-{item}" for item in known], "price": list(known), "brand": [f"brand {i % 3}" for i in known]}
    pq.write_table(pa.table(table), folder / "items.parquet")
    write_list(folder / "hidden.txt", ["v1-4"])
    return {"items": folder / "items.parquet", "hidden_items": str(folder / "hidden.txt"), "num_recommendations": K}


def test_rows_with_filters_get_the_service_s_answers(tmp_path: Path, model: Path) -> None:
    told = prepared(tmp_path)
    rows: list[dict[str, Any]] = []
    for number, (wanted, parameters) in enumerate(FILTERS * 3):
        row: dict[str, Any] = {"item_ids": [number, 49 - number] if number % 7 else [ITEMS]}
        row |= {} if wanted is None else {"filter": wanted}
        row |= {} if parameters is None else {"filter_parameters": parameters}
        rows.append(row)
    with in_a_thread(lambda: server_of(Settings(port=0, model=model, **told))) as server:
        answers = online(server.port, rows)
    as_text = [
        {**row, "filter": row.get("filter"), "filter_parameters": json.dumps(row.get("filter_parameters") or {})}
        for row in rows
    ]

    with closing(Scorer(str(model), settings=told)) as scorer:
        scored = scorer(table_of(as_text))

    assert_same(scored, answers, 1e-4)
    matching = [
        result.response.matching_items if result.response.HasField("matching_items") else None for result in answers
    ]
    assert scored.column("matching_items").to_pylist() == matching
    assert {0, 11, None} < set(matching)
    assert 0 < scored.column("error").null_count < len(rows)


@pytest.mark.parametrize(
    "kind", [pa.struct({"most": pa.int64(), "other": pa.string()}), pa.map_(pa.string(), pa.int64()), pa.string()]
)
def test_parameters_are_structs_maps_or_json(tmp_path: Path, model: Path, kind: pa.DataType) -> None:
    told = prepared(tmp_path)
    given: Any = '{"most": 12}' if kind == pa.string() else {"most": 12}
    if pa.types.is_map(kind):
        given = list(given.items())
    table = pa.table(
        {"item_ids": [[1]] * 3, "only": [BELOW] * 3, "with": pa.array([given, None, given], kind)},
    )

    with closing(Scorer(str(model), columns={"filter": "only", "filter_parameters": "with"}, settings=told)) as scorer:
        scored = scorer(table)

    assert scored.column("matching_items").to_pylist() == [11, None, 11]
    assert [error is None for error in scored.column("error").to_pylist()] == [True, False, True]


def test_a_job_does_not_go_on_with_another_table_or_other_hidden_items(tmp_path: Path, model: Path) -> None:
    told = prepared(tmp_path)
    rows = [{"user": 1, "item_ids": [1], "filter": "item.price < 12"}]
    pq.write_table(table_of(rows), tmp_path / "in.parquet")

    def run() -> Summary:
        with closing(asyncio.run(open_bulk_model(Settings(**told), str(model)))) as opened:
            job = Job(opened, find_inputs(str(tmp_path / "in.parquet")), JobOptions({}), longest=60.0)
            return job.run(open_folder(str(tmp_path / "out")), lambda _: None)

    assert run().rows_before == 0
    assert run().rows_before == 1
    write_list(tmp_path / "hidden.txt", ["v1-5"])
    with pytest.raises(BulkError, match=r"catalogue\.hidden"):
        run()
    write_list(tmp_path / "hidden.txt", ["v1-4"])
    pq.write_table(pq.read_table(tmp_path / "items.parquet").slice(1), tmp_path / "items.parquet")
    with pytest.raises(BulkError, match=r"catalogue\.items"):
        run()
