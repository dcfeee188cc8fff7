"""What `recommender profile` shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import models


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recommender", "profile", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_measures_recommends_and_writes_what_it_measured(tmp_path: Path) -> None:
    metadata = {"recommender.items": "50"}
    models.batched(tmp_path / "10_model.onnx", models.table(), metadata=metadata, k=10)
    done = run(
        tmp_path, "10_model.onnx", "--batches", "1,8", "--histories", "1,5", "--threads", "1",
        "--seconds", "0", "--p99-ms", "60000", "--output", "measured.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rows a second" in done.stdout
    assert "RECOMMENDER_MAX_BATCH_SIZE=" in done.stdout
    written = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    assert [(each["threads"], each["history"], each["batch"]) for each in written["measurements"]] == [
        (1, 1, 1), (1, 1, 8), (1, 5, 1), (1, 5, 8),
    ]  # fmt: skip
    assert all(0 < each["p50_ms"] <= each["p99_ms"] and each["runs"] >= 20 for each in written["measurements"])
    assert all(line in done.stdout for line in written["advice"])


def test_a_model_that_is_not_there_and_a_list_that_is_none_are_sentences(tmp_path: Path) -> None:
    missing = run(tmp_path, "none.onnx")
    assert missing.returncode == 2
    assert "there is no model file none.onnx" in missing.stderr
    wrong = run(tmp_path, "none.onnx", "--batches", "1,many")
    assert wrong.returncode == 2
    assert "is not a list of whole numbers" in wrong.stderr.replace("\n", " ")
    assert "Traceback" not in missing.stderr + wrong.stderr


@pytest.mark.parametrize(
    ("option", "value", "most"), [("--batches", 4096, 4096), ("--histories", 10**5, 10**5), ("--threads", 1024, 1024)]
)
def test_more_than_a_server_takes_is_refused_at_the_option(tmp_path: Path, option: str, value: int, most: int) -> None:
    wrong = run(tmp_path, "none.onnx", option, f"1,{value + 1}")
    right = run(tmp_path, "none.onnx", option, str(value))

    assert (wrong.returncode, right.returncode) == (2, 2)
    assert f"{option}: {value + 1} is more than {most}, the most that a server takes" in wrong.stderr.replace("\n", " ")
    assert "there is no model file none.onnx" in right.stderr
