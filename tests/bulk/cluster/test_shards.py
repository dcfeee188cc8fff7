"""Shards: cut from the input alone, and scored by workers as one job would."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recommender.bulk.cluster.shards import Shard, cut_into_shards
from recommender.bulk.cluster.worker import Order, Worker
from recommender.bulk.errors import BulkError
from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import JobOptions
from tests.bulk.conftest import MakeJob
from tests.support.bulk import table_of
from tests.support.versions import K, write_version

ROWS = 1000


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the model that `job` has open."""
    return str(write_version(tmp_path_factory.mktemp("shards") / "shop" / "1", 1, keys=50, fallback=(7, 3, 11)))


def rows_of(shards: list[Shard]) -> list[int]:
    """The rows that shards read, in their order, if each row holds its number."""
    read: list[int] = []
    for shard in shards:
        tables = [table.column("user") for table, _, _ in shard.inputs.tables(shard.first_row)]
        read += pa.chunked_array(tables).to_pylist()[: shard.rows]
    return read


def order(where: Path, output: Path, reference: str, **options: object) -> Order:
    """The instructions of `job` for workers."""
    chosen = JobOptions({}, part_rows=100, **options)  # type: ignore[arg-type]
    inputs = find_inputs(str(where))
    settings = {"num_recommendations": K}
    told = Order(cut_into_shards(inputs, chosen), inputs.names(), str(output), chosen, reference, None, settings, 1, 16)
    sent: Order = pickle.loads(pickle.dumps(told))  # noqa: S301 (our own)
    return sent


@pytest.mark.parametrize(("groups", "limit"), [((1,) * 12, None), ((50, 3, 0, 400), None), ((1000,), 777), ((9,), 5)])
def test_shards_of_parquet_have_each_row_once_and_in_order(
    tmp_path: Path, groups: tuple[int, ...], limit: int | None
) -> None:
    row = 0
    for file in range(3):
        with pq.ParquetWriter(tmp_path / f"{file}.parquet", pa.schema({"user": pa.int64()})) as writer:
            for rows in groups:
                numbers = pa.array(range(row, row + rows), pa.int64())
                writer.write_table(pa.table({"user": numbers}), row_group_size=max(rows, 1))
                row += rows
    inputs = find_inputs(str(tmp_path))

    for part_rows in (1, 7, 100):
        shards = cut_into_shards(inputs, JobOptions({}, part_rows=part_rows, limit_rows=limit))
        assert rows_of(shards) == list(range(row if limit is None else min(row, limit)))
        assert [shard.number for shard in shards] == list(range(len(shards)))
        assert all(shard.rows for shard in shards)


def test_a_large_row_group_is_cut_into_whole_parts_and_small_ones_are_kept_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": range(2050)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"user": range(2050, 2400)}), tmp_path / "1.parquet", row_group_size=50)

    shards = cut_into_shards(find_inputs(str(tmp_path)), JobOptions({}, part_rows=100))

    assert [shard.rows for shard in shards] == [600, 600, 600, 250, 100, 100, 100, 50]


def test_text_is_cut_between_files_and_not_at_all_with_a_limit(tmp_path: Path) -> None:
    for file in range(300):
        (tmp_path / f"{file:03}.csv").write_text(f"user,item_ids\n{file},1 2\n")
    inputs = find_inputs(str(tmp_path))

    assert 100 <= len(cut_into_shards(inputs, JobOptions({}))) <= 150
    assert [int(row) for row in rows_of(cut_into_shards(inputs, JobOptions({})))] == list(range(300))
    (only,) = cut_into_shards(inputs, JobOptions({}, limit_rows=10))
    assert (only.rows, len(only.inputs.files)) == (10, 300)


def write(folder: Path, kind: str) -> Path:
    """Files of one kind, of which one has a malformed line or row."""
    folder.mkdir()
    draw = random.Random(1)
    rows = [{"user": row, "item_ids": [draw.randrange(50) for _ in range(row % 5)]} for row in range(ROWS)]
    rows[321]["item_ids"] = [-1]
    for file in range(2):
        path, table = folder / f"{file}.{kind}", table_of(rows[file * 500 : file * 500 + 500])
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=450)
        elif kind == "arrow":
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=33)
        else:
            lines = [f"{row['user']},{' '.join(map(str, row['item_ids']))}" for row in table.to_pylist()]
            path.write_text("\n".join(["user,item_ids", *lines, "1,2,3,4"]) + "\n")
    return folder


@pytest.fixture
def worker() -> Iterator[list[Worker]]:
    """Workers that are closed in the end."""
    made: list[Worker] = []
    yield made
    for each in made:
        each.close()


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_shards_give_the_rows_of_one_job_in_its_order(
    tmp_path: Path, job: MakeJob, reference: str, worker: list[Worker], kind: str
) -> None:
    where = write(tmp_path / "in", kind)
    told = order(where, tmp_path / "out", reference)
    worker += [Worker(told), Worker(told)]
    summary = job(where).run(open_folder(str(tmp_path / "whole")), lambda _: None)

    done = [worker[number % 2].score(number) for number in reversed(range(len(told.shards)))]

    assert len(done) > 1
    whole, scored = (pq.ParquetDataset(tmp_path / name).read().to_pylist() for name in ("whole", "out"))
    assert scored == whole
    assert sum(each.summary.counts.rows for each in done) == summary.counts.rows
    assert sum(each.summary.counts.failed for each in done) == summary.counts.failed > 0


def test_a_shard_that_was_killed_goes_on_and_one_that_is_done_is_not_scored_again(
    tmp_path: Path, reference: str, worker: list[Worker]
) -> None:
    where = write(tmp_path / "in", "parquet")
    one, other = (order(where, tmp_path / name, reference) for name in ("one", "other"))
    worker += [Worker(one), Worker(other)]
    for number in range(len(one.shards)):
        worker[0].score(number)
        worker[1].score(number)
    last = tmp_path / "other" / one.shards[-1].folder
    manifest = json.loads((last / "_manifest.json").read_bytes())
    lost = manifest["parts"].pop()
    (last / "_manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (last / lost["file"]).write_bytes(b"half")

    again = [worker[1].score(number).summary for number in range(len(one.shards))]

    assert sum(each.counts.rows - each.rows_before for each in again) == lost["rows"]
    for path in (tmp_path / "one").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_model_of_another_digest_is_refused(tmp_path: Path, reference: str) -> None:
    where = write(tmp_path / "in", "parquet")
    told = order(where, tmp_path / "out", reference)
    moved = replace(told, sha256="0" * 64)

    with pytest.raises(BulkError, match=r"has the SHA-256 [0-9a-f]{64}, not 0{64}"):
        Worker(moved).score(0)


def test_a_shard_waits_for_the_end_of_a_worker_that_has_it_still(
    tmp_path: Path, reference: str, worker: list[Worker]
) -> None:
    told = order(write(tmp_path / "in", "parquet"), tmp_path / "out", reference)
    worker += [Worker(told)]
    with ThreadPoolExecutor(1) as pool:
        with open_folder(str(tmp_path / "out" / told.shards[0].folder)).held():
            done = pool.submit(worker[0].score, 0)
            with pytest.raises(TimeoutError):
                done.result(0.5)
        assert done.result(30).summary.counts.rows == told.shards[0].rows
