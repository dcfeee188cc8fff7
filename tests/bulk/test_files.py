"""Files of every kind, and lines that are no rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recommender.bulk.columns import Columns
from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.output import open_folder
from recommender.bulk.parts import cut
from tests.bulk.conftest import MakeJob
from tests.support.bulk import table_of

HISTORIES = [[random.Random(row).randrange(50) for _ in range(1 + row % 7)] for row in range(250)]
TABLE = table_of([{"user": row, "item_ids": history} for row, history in enumerate(HISTORIES)])


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    for place, rows in enumerate((TABLE.slice(0, 120), TABLE.slice(120))):
        path = folder / f"{place}.{kind}"
        if kind == "parquet":
            pq.write_table(rows, path, row_group_size=50)
        elif kind == "arrow":
            with pa.ipc.new_file(path, rows.schema) as writer:
                writer.write_table(rows, max_chunksize=33)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
        else:
            lines = [f"{row['user']},{' '.join(map(str, row['item_ids']))}" for row in rows.to_pylist()]
            path.write_text("\n".join(["user,item_ids", *lines]) + "\n")
    (folder / "_manifest.json").write_text("{}")
    return folder


def scored(job: MakeJob, where: Path | str, output: Path, **options: object) -> pa.Table:
    job(where, **options).run(open_folder(str(output)), lambda _: None)
    return pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*.parquet")))


def test_files_of_every_kind_give_the_same_answers(tmp_path: Path, job: MakeJob) -> None:
    outputs = {}
    for kind in ("parquet", "arrow", "jsonl", "csv"):
        folder = write(tmp_path / kind, kind)
        outputs[kind] = scored(job, folder, tmp_path / f"{kind}-out")
        assert outputs[kind].equals(scored(job, folder / f"*.{kind}", tmp_path / f"{kind}-glob"))

    first = outputs["parquet"]
    assert first.column("user").to_pylist() == list(range(250))
    assert first.column("error").null_count == 250
    for kind, output in outputs.items():
        assert output.drop_columns("user").equals(first.drop_columns("user")), kind
    assert outputs["csv"].column("user").to_pylist() == [str(row) for row in range(250)]


def test_a_line_that_is_no_row_is_an_error_in_its_place(tmp_path: Path, job: MakeJob) -> None:
    csv, jsonl = tmp_path / "a.csv", tmp_path / "a.jsonl"
    csv.write_text('user,item_ids\na,1 2\nb,1,2\nc,"[1, 2]"\nd,1 x\ne,\n')
    jsonl.write_text(
        '{"user": "a", "item_ids": [1, 2]}\n{"user": \n[1]\n'
        '{"user": "d", "item_ids": ["x"]}\n{"user": "e", "item_ids": null}\n'
    )

    in_csv, in_jsonl = (scored(job, path, tmp_path / f"{path.suffix}-out").to_pylist() for path in (csv, jsonl))

    assert [row["error"] for row in in_csv] == [
        None,
        "the line has 3 fields and the header 2",
        None,
        "item_ids: an item is not a whole number",
        None,
    ]
    assert in_csv[0]["item_ids"] == in_csv[2]["item_ids"]
    assert [bool(row["error"]) for row in in_jsonl] == [False, True, True, True, False]
    assert {row["error"].partition(":")[0] for row in in_jsonl if row["error"]} == {"the line is not a row"}
    # Nothing to rank by: the fallback list.
    assert in_csv[4]["source"] == in_jsonl[4]["source"] == "fallback"
    assert in_csv[0]["item_ids"] == in_jsonl[0]["item_ids"]


def test_items_that_are_null_or_too_large_are_errors_in_their_rows(tmp_path: Path, job: MakeJob) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table_of([{"item_ids": [1, None]}, {"item_ids": [2**40]}, {"item_ids": [1]}]), path)

    rows = scored(job, path, tmp_path / "out").to_pylist()

    assert [row["error"] for row in rows] == [
        "item_ids: an item is null",
        "item_ids[0]: 1099511627776 is too large: ids have 32 bits",
        None,
    ]


def test_columns_may_have_other_names_and_keys_are_written_beside_ids(tmp_path: Path, job: MakeJob) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"who": ["a", "b"], "seen": [["v1-3", "v1-4"], ["nothing"]]}), path)

    rows = scored(job, path, tmp_path / "out", columns={"user": "who", "item_keys": "seen"}).to_pylist()

    assert [row["who"] for row in rows] == ["a", "b"]
    assert rows[0]["item_keys"] == [f"v1-{item}" for item in rows[0]["item_ids"]]
    assert (rows[1]["source"], rows[1]["unknown_item_keys"]) == ("fallback", ["nothing"])


def test_a_file_without_a_column_of_the_first_one_is_named(tmp_path: Path, job: MakeJob) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(table_of([{"item_ids": [1], "limit": 3}]), tmp_path / "in" / "0.parquet")
    pq.write_table(table_of([{"item_ids": [1]}]), tmp_path / "in" / "1.parquet")

    with pytest.raises(BulkError, match=r"1\.parquet has no column limit, which other files have"):
        scored(job, tmp_path / "in", tmp_path / "out")


def test_columns_that_nobody_needs_are_not_read(tmp_path: Path, job: MakeJob) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE.append_column("note", pa.array(["n"] * len(TABLE))), path, compression="zstd")
    note = pq.read_metadata(path).row_group(0).column(2)
    assert note.path_in_schema == "note"
    with path.open("r+b") as file:
        file.seek(note.dictionary_page_offset)
        file.write(b"\xff" * note.total_compressed_size)
    with pytest.raises(OSError, match=r"(?i)thrift|page|corrupt"):
        pq.read_table(path)

    assert scored(job, path, tmp_path / "out", ignore=("note",)).column("error").null_count == len(TABLE)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ((), "has no file to score"),
        (("a.parquet", "b.csv"), r"files of several kinds \(csv, parquet\)"),
        (("a.parquet",), "a.parquet cannot be read"),
    ],
)
def test_inputs_that_are_none_are_refused(tmp_path: Path, files: tuple[str, ...], sentence: str) -> None:
    for name in files:
        (tmp_path / name).write_text("what is this")
    with pytest.raises(BulkError, match=sentence):
        find_inputs(str(tmp_path))


def test_long_rows_make_parts_of_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ends = pa.array([0, 4_000_000, 9_000_000, 9_000_001], pa.int32())
    pq.write_table(pa.table({"item_ids": pa.ListArray.from_arrays(ends, np.ones(9_000_001, np.int8))}), path)
    inputs, columns = find_inputs(str(path)), Columns(item_ids="item_ids")

    parts = list(cut(inputs, columns, skip=0, rows=100, limit=None, usual_k=5, most_k=50))

    assert [(part.first_row, len(part.table)) for part in parts] == [(0, 2), (2, 1)]
