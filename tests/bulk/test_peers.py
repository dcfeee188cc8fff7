"""The Scorer in other people's pipelines, real ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recommender.bulk import Scorer
from recommender.domain import Ranking
from tests.support.bulk import table_of
from tests.support.paths import ROOT, WEIGHTS
from tests.support.peers import told_by

pytestmark = pytest.mark.peers

HERE = Path(__file__).parent
MODEL = WEIGHTS / "10_model.onnx"
ROWS = 40_000
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(2)
    rows = [
        {"user": row, "item_ids": [draw.randrange(10_000) for _ in range(draw.randint(1, 30))]} for row in range(ROWS)
    ]
    rows[17]["item_ids"] = [-1]
    path = tmp_path_factory.mktemp("peers") / "in.parquet"
    pq.write_table(table_of(rows), path, row_group_size=10_000)
    return path


def assert_same(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows have the answers of a Scorer here, in the order of the input."""
    expected = Scorer(str(MODEL))(pq.read_table(path)).to_pylist()
    assert len(rows) == len(expected) == ROWS
    for mine, theirs in zip(expected, rows, strict=True):
        assert theirs["user"] == mine["user"]
        assert theirs["error"] == mine["error"]
        if mine["error"] is None:
            assert Ranking(theirs["item_ids"], theirs["scores"]).equals(
                Ranking(mine["item_ids"], mine["scores"]), TOLERANCE
            )


def test_a_ray_cluster_of_two_actors_gives_the_same_answers_and_goes_on_after_a_kill(
    path: Path, tmp_path: Path
) -> None:
    told = told_by(
        HERE / "ray_scores.py",
        str(MODEL),
        str(path),
        str(tmp_path / "out"),
        packages=(f"recommender[ray] @ {ROOT.as_uri()}",),
    )

    for run in ("summary", "again", "client"):
        assert told[run]["rows"] == ROWS
        assert told[run]["errors"] == {"INVALID_ARGUMENT item_ids": 1}
    assert 0 < told["summary"]["rows_before"] < told["again"]["rows_before"] == ROWS
    assert told["client"]["rows_before"] == 0
    assert told["same"]
    assert_same(path, told["rows"])


def test_spark_gives_the_same_answers(path: Path) -> None:
    told = told_by(
        HERE / "spark_scores.py",
        str(MODEL),
        str(path),
        packages=(f"recommender[bulk] @ {ROOT.as_uri()}", "pyspark>=4,<5", "pandas>=2.2"),
    )

    assert_same(path, [told[str(row)] for row in range(ROWS)])
