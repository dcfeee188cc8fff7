"""`recommender score` as a person types it, and as the kernel ends it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.manifest import MANIFEST
from recommender.bulk.files.output import open_folder
from recommender.bulk.job import Job, JobOptions
from recommender.bulk.model import open_bulk_model
from recommender.settings.settings import Settings
from tests.support.bulk import table_of
from tests.support.paths import ROOT
from tests.support.versions import K, write_version

PATIENCE = 110.0
ROWS = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose batches take some time, and histories of which one is bad."""
    folder = tmp_path_factory.mktemp("score")
    write_version(folder / "shop" / "1", 1, burn=1)
    rows: list[dict[str, Any]] = [{"user": row, "item_ids": [row % 50, row % 11]} for row in range(ROWS)]
    rows[1234]["item_ids"] = [-1]
    pq.write_table(table_of(rows), folder / "in.parquet")
    return folder


def words(folder: Path, output: Path, *more: str) -> list[str]:
    named = [str(folder / "shop"), "--input", str(folder / "in.parquet"), "--output", str(output)]
    shape = ["--part-rows", "100", "--batch-rows", "8", "--num-recommendations", str(K), "--json"]
    return [sys.executable, "-m", "recommender", "score", *named, *shape, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def score(folder: Path, output: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    ended = subprocess.run(
        words(folder, output, *more), capture_output=True, text=True, check=False, env=environment(), timeout=PATIENCE
    )
    return ended.returncode, json.loads(ended.stdout or "{}"), ended.stderr


def committed(output: Path) -> int:
    try:
        return len(json.loads((output / MANIFEST).read_bytes())["parts"])
    except FileNotFoundError:
        return 0


def killed(folder: Path, output: Path, parts: int, number: int = signal.SIGKILL) -> int:
    """Score until so many parts are committed, then end the process with a signal; returns its exit code."""
    with subprocess.Popen(words(folder, output), stderr=subprocess.DEVNULL, env=environment()) as process:
        end = time.monotonic() + PATIENCE
        while committed(output) < parts:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.002)  # the folder gives no sign
        process.send_signal(number)
        return process.wait(PATIENCE)


def content(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name != ".lock"}


@pytest.mark.slow
def test_a_killed_job_goes_on_and_says_what_it_came_to(tmp_path: Path, folder: Path) -> None:
    assert killed(folder, tmp_path / "parted", 2) == -signal.SIGKILL
    before = committed(tmp_path / "parted")
    assert 2 <= before < 20

    code, summary, _ = score(folder, tmp_path / "parted", "--max-errors", "0")
    opening = open_bulk_model(Settings(num_recommendations=K), str(folder / "shop"), batch_rows=8)
    with closing(asyncio.run(opening)) as model:
        job = Job(model, find_inputs(str(folder / "in.parquet")), JobOptions({}, part_rows=100), longest=PATIENCE)
        assert job.try_out().counts.errors.total() == 0  # of the first thousand
        job.run(open_folder(str(tmp_path / "whole")), lambda _: None)

    assert code == 1
    assert content(tmp_path / "parted") == content(tmp_path / "whole")
    assert summary["errors"] == {"INVALID_ARGUMENT item_ids": 1}
    assert (summary["rows"], summary["parts"], summary["rows_before"]) == (ROWS, 20, before * 100)
    assert summary["batch_p99_ms"] >= summary["batch_p50_ms"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--on", "ray")])
def test_a_dry_run_scores_a_few_rows_here_and_writes_nothing(
    tmp_path: Path, folder: Path, more: tuple[str, ...]
) -> None:
    code, summary, _ = score(folder, tmp_path / "out", "--dry-run", *more)

    assert (code, summary["rows"], (tmp_path / "out").exists()) == (0, 1000, False)


@pytest.mark.slow
def test_what_cannot_start_says_why(tmp_path: Path, folder: Path) -> None:
    code, _, said = score(folder, tmp_path / "out", "--item-ids", "clicks")

    assert code == 2
    assert said.splitlines()[-1] == "recommender: the input has no column clicks (--item-ids): it has item_ids, user"


@pytest.mark.long
def test_twenty_random_kills_leave_the_bytes_of_one_run(tmp_path: Path, folder: Path) -> None:
    draw = random.Random(11)
    assert score(folder, tmp_path / "whole")[0] == 0
    for moment in range(20):
        output = tmp_path / str(moment)
        with subprocess.Popen(words(folder, output), stderr=subprocess.DEVNULL, env=environment()) as process:
            while committed(output) == 0 and process.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 2))
            process.kill()
        before = committed(output)
        code, summary, _ = score(folder, output)
        # No part that the manifest names is scored again; of the others, one at most was ranked whole.
        assert (code, summary["rows_before"]) == (0, before * 100)
        assert content(output) == content(tmp_path / "whole"), moment


@pytest.mark.slow
def test_a_signal_to_stop_ends_the_job_in_order(tmp_path: Path, folder: Path) -> None:
    assert killed(folder, tmp_path / "out", 1, signal.SIGTERM) == 3
    assert score(folder, tmp_path / "out")[0] == 0
