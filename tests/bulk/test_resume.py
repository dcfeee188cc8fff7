"""A job resumes where it was, writes the bytes of one run, and counts only finished parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recommender.bulk.errors import BulkError
from recommender.bulk.files.manifest import MANIFEST
from recommender.bulk.files.output import LocalFolder, open_folder
from recommender.bulk.pipeline import StoppedError
from tests.bulk.conftest import MakeJob
from tests.support.bulk import table_of

ROWS = 1050


def write_input(path: Path, rows: int = ROWS) -> Path:
    pq.write_table(table_of([{"user": row, "item_ids": [row % 50, row % 7]} for row in range(rows)]), path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


class Interrupted(LocalFolder):
    """Does something before a file is written."""

    def __init__(self, path: Path, file: str, act: object) -> None:
        super().__init__(path)
        self._file = file
        self._act = act

    def write(self, file: str, content: pa.Buffer | bytes) -> None:
        if file == self._file:
            self._act()  # type: ignore[operator]
        super().write(file, content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in.parquet")


def test_a_stopped_job_goes_on_and_its_output_is_that_of_one_run(tmp_path: Path, path: Path, job: MakeJob) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    job(path).run(open_folder(str(whole)), lambda _: None)
    for file in ("part-00000.parquet", "part-00003.parquet", "part-00010.parquet"):
        stopped = job(path)
        with pytest.raises(StoppedError, match="the same command continues"):
            stopped.run(Interrupted(parted, file, stopped.stop), lambda _: None)
    (parted / ".part-00007.parquet.draft").write_bytes(b"half")
    summary = job(path).run(open_folder(str(parted)), lambda _: None)

    assert content(parted) == content(whole)
    assert (summary.counts.rows, summary.parts) == (ROWS, 11)
    assert pq.ParquetDataset(parted).read().num_rows == ROWS
    # Once more is a no-op.
    assert job(path).run(open_folder(str(parted)), lambda _: None).rows_before == ROWS


def test_another_job_is_refused_with_what_differs(tmp_path: Path, path: Path, job: MakeJob) -> None:
    folder = open_folder(str(tmp_path / "out"))
    job(path, limit_rows=200).run(folder, lambda _: None)

    with pytest.raises(BulkError, match=r"options\.limit_rows was 200 and is now 100"):
        job(path, limit_rows=100).run(folder, lambda _: None)
    write_input(path, 1000)
    with pytest.raises(BulkError, match=r"input\[0\].size was \d+ and is now \d+"):
        job(path, limit_rows=200).run(folder, lambda _: None)


def test_a_folder_of_other_things_is_refused(tmp_path: Path, path: Path, job: MakeJob) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")

    with pytest.raises(BulkError, match=r"is not empty and has no _manifest.json: .*thesis.txt"):
        job(path).run(open_folder(str(tmp_path / "out")), lambda _: None)


def test_a_part_that_was_altered_is_noticed(tmp_path: Path, path: Path, job: MakeJob) -> None:
    folder = tmp_path / "out"
    job(path).run(open_folder(str(folder)), lambda _: None)
    (folder / "part-00002.parquet").unlink()

    with pytest.raises(BulkError, match=r"part-00002.parquet was altered or deleted"):
        job(path).run(open_folder(str(folder)), lambda _: None)


def test_an_input_that_changes_underneath_ends_the_job(tmp_path: Path, path: Path, job: MakeJob) -> None:
    folder = tmp_path / "out"

    with pytest.raises(BulkError, match=r"in\.parquet has changed since the job began"):
        job(path).run(Interrupted(folder, "part-00003.parquet", lambda: os.utime(path)), lambda _: None)
    # The part that was under way may be whole; none after it is.
    assert len(json.loads((folder / MANIFEST).read_text())["parts"]) == 4


def test_a_full_disk_ends_the_job_and_leaves_no_half_of_a_part(tmp_path: Path, path: Path, job: MakeJob) -> None:
    folder = tmp_path / "out"

    def fill() -> None:
        (folder / ".part-00002.parquet.draft").symlink_to("/dev/full")

    with pytest.raises(BulkError, match=r"part-00002\.parquet cannot be written: .*No space left"):
        job(path).run(Interrupted(folder, "part-00002.parquet", fill), lambda _: None)

    assert sorted(content(folder)) == [MANIFEST, "part-00000.parquet", "part-00001.parquet"]
    assert job(path).run(open_folder(str(folder)), lambda _: None).rows_before == 200


def test_two_jobs_do_not_write_into_one_folder(tmp_path: Path, path: Path, job: MakeJob) -> None:
    folder = tmp_path / "out"
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(BulkError) as error:
            job(path).run(open_folder(str(folder)), lambda _: None)
        refused.append(str(error.value))

    job(path).run(Interrupted(folder, "part-00001.parquet", second), lambda _: None)

    assert refused == [f"another job writes into {folder}: wait for its end, or name another folder"]
