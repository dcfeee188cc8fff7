"""Bulk scoring answers every row as the service does, and refuses it with the same sentence."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recommender.bulk import Scorer
from recommender.errors import StartError
from recommender.models.artifact import open_artifact
from tests.support.bulk import assert_same, online, table_of
from tests.support.models import table, write_older_model
from tests.support.paths import WEIGHTS
from tests.support.serving import served
from tests.support.versions import UNTRIED, K, write_version

ITEMS = 10_000
USERS = np.random.default_rng(3).normal(0, 2, (7, 8)).astype(np.float32)
USER_KEYS = [f"user/{number}-ä" for number in range(1, 7)]
FALLBACK = (7, 3, 11, 39, 0)


def score(model: str, rows: pa.Table, **options: Any) -> pa.Table:
    """Score rows by a model that is closed afterwards."""
    with closing(Scorer(model, **options)) as scorer:
        return scorer(rows)


@pytest.fixture(scope="module")
def reference() -> Iterator[Scorer]:
    scorer = Scorer("reference")
    yield scorer
    scorer.close()


def tolerance_of(model: Path) -> float:
    card = open_artifact(model).card
    assert card is not None
    return card.score_tolerance


def rows_of_every_kind(count: int) -> list[dict[str, Any]]:
    """Plain rows for the most part; others with unknown items, limits, exclusions, candidates and mistakes."""
    draw = random.Random(5)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        row: dict[str, Any] = {"item_ids": [draw.randrange(ITEMS) for _ in range(draw.randint(1, 40))]}
        if number % 4 == 1:
            row["limit"] = draw.choice([0, 1, 7, 50, 1000, 1001, 20_000, -1])
        if number % 5 == 1:
            row["excluded_item_ids"] = [draw.randrange(ITEMS) for _ in range(draw.randint(1, 30))]
        if number % 16 == 3:
            row["item_ids"][0] = draw.choice([ITEMS, 2**31 - 1, -1])
        if number % 16 == 7:
            row["candidate_item_ids"] = [draw.randrange(ITEMS) for _ in range(draw.randint(1, 30))]
        if number % 16 == 11:
            row["excluded_item_ids"] = [5, ITEMS + 1, draw.choice([6, -2])]
        if number % 32 == 13:
            row["item_ids"] = draw.choice([None, [], [ITEMS], list(range(4097))])
        if number % 128 == 77:
            row["excluded_item_ids"] = list(range(ITEMS - 4))  # leaves fewer items than any limit
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("count", "exclude_history"), [(600, False), (600, True), pytest.param(100_000, False, marks=pytest.mark.long)]
)
def test_rows_of_every_kind_get_the_service_s_answers(
    count: int,
    exclude_history: bool,  # noqa: FBT001 (a parameter)
) -> None:
    rows = rows_of_every_kind(count)
    model = WEIGHTS / "10_model.onnx"
    with served(model, 10, "grpc") as port:
        answers = online(port, rows, exclude_history=exclude_history)

    scored = score(str(model), table_of(rows), exclude_history=exclude_history)

    assert_same(scored, answers, tolerance_of(model))


@pytest.mark.parametrize("unknown", ["row", "history", "fallback"])
def test_users_and_keys_get_the_service_s_answers(tmp_path: Path, unknown: Any) -> None:
    folder = write_version(
        tmp_path / "shop" / "1",
        1,
        users=USERS,
        user_keys=USER_KEYS,
        unknown_user=unknown,
        keys=50,
        fallback=FALLBACK,
    )
    draw = random.Random(7)
    by_id: list[dict[str, Any]] = []
    for _ in range(200):
        history = [draw.randrange(52) for _ in range(draw.choice([0, 0, 1, 5]))]
        by_id.append({"user": draw.choice([None, 0, 1, 6, 7, -1, 2**40]), "item_ids": history})
    by_key = [
        {
            "user": None if row["user"] is None else USER_KEYS[row["user"] % 6] if row["user"] > 0 else "nobody",
            "item_keys": [f"v1-{item}" for item in row["item_ids"]] + draw.choice([[], [], ["x" * 300], ["no"], [""]]),
        }
        for row in by_id
    ]
    by_key[0]["user"] = "nobody"  # shows that the column is text
    with served(folder / "model.onnx", K, "grpc") as port:
        answers = [online(port, rows) for rows in (by_id, by_key)]

    # The server serves the file by the name in its card, the scorer the folder of a version.
    for rows, expected in zip((by_id, by_key), answers, strict=True):
        scored = score(str(folder), table_of(rows), settings={"num_recommendations": K})
        label = pa.array([expected[0].response.model_version or "test@1"] * len(rows))
        place = scored.column_names.index("model_version")
        assert_same(scored.set_column(place, "model_version", label), expected, 1e-4)


@pytest.mark.parametrize(
    "defaults", [{}, {"history_types": {"count": 3, "default": 1}, "history_times": {"default": 9}}]
)
def test_types_and_times_get_the_service_s_answers(tmp_path: Path, defaults: dict[str, Any]) -> None:
    folder = write_version(tmp_path / "shop" / "1", 1, types=USERS[:4], timed=True, **defaults)
    draw = random.Random(8)
    rows: list[dict[str, Any]] = []
    for _ in range(100):
        history = [draw.randrange(52) for _ in range(draw.choice([1, 5]))]
        size = len(history) + draw.choice([0, 0, 0, 1])
        types = [draw.choice([1, 2, 3, 3, 4, -1][: draw.choice([3, 6])]) for _ in range(size)]
        times = [draw.randrange(2**41) for _ in history]
        rows.append({"item_ids": history, "history_type_ids": types, "history_times": times})
        rows.append({"item_ids": history, "history_type_ids": None, "history_times": draw.choice([None, times])})
    reference = f"{folder.parent}@1"
    with served(Path(reference), K, "grpc") as port:
        answers = online(port, rows)

    assert_same(score(reference, table_of(rows), settings={"num_recommendations": K}), answers, 1e-4)


def test_columns_called_as_features_get_the_service_s_answers(tmp_path: Path) -> None:
    folder = write_version(tmp_path / "shop" / "1", 1, users=USERS, featured=True)
    draw = random.Random(9)
    rows: list[dict[str, Any]] = [
        {
            "item_ids": [draw.randrange(50)],
            "age": draw.choice([None, 20.0, 121.0]),
            "city": draw.choice([None, "rome", "nowhere"]),
            "level": draw.choice([None, 2]),
            "premium": draw.choice([None, True]),
            "tastes": draw.choice([None, [0.5, 1.0], [0.5]]),
        }
        for _ in range(100)
    ]
    reference = f"{folder.parent}@1"
    with served(Path(reference), K, "grpc") as port:
        answers = online(port, rows)

    scored = score(reference, table_of(rows), settings={"num_recommendations": K})

    assert_same(scored, answers, 1e-4)
    assert 0 < scored.column("error").null_count < 100


def test_a_row_that_the_engine_fails_on_fails_alone(tmp_path: Path) -> None:
    for name, fault in (("throws", {"fails_on": UNTRIED}), ("gives-nan", {"flaws": {UNTRIED: math.nan}})):
        folder = write_version(tmp_path / name / "1", 1, **fault)
        rows = [{"item_ids": [1, 2]} for _ in range(100)]
        rows[57]["item_ids"] = [3, UNTRIED]

        scored = score(str(folder), table_of(rows), settings={"num_recommendations": K}).to_pylist()

        assert [place for place, row in enumerate(scored) if row["error"] is not None] == [57]
        assert all(row["item_ids"] == scored[0]["item_ids"] for place, row in enumerate(scored) if place != 57)


def test_an_older_model_without_a_batch_axis_is_scored_row_by_row(tmp_path: Path) -> None:
    older = str(write_older_model(tmp_path / "5_model.onnx", table(), 5))
    rows = table_of([{"item_ids": [1, 2, 3]}, {"item_ids": [4]}])
    scored = score(older, rows, settings={"num_recommendations": 5}).to_pylist()

    assert [len(row["item_ids"]) for row in scored] == [5, 5]
    assert scored[0]["scores"] == []


def test_numpy_batches_come_back_as_numpy(reference: Scorer) -> None:
    histories = np.empty(2, object)
    histories[:] = [np.array([1, 2, 3, 4]), np.array([0])]

    scored = reference({"item_ids": histories, "user": np.array(["a", "b"])})

    assert scored["item_ids"][0].tolist()[0] == 5510
    assert list(scored["user"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"item_ids": [[1]], "filter": ["x"]},
            "column filter: nothing is known of the items of model reference@1: filters need a table",
        ),
        ({"item_ids": [[1]], "min_score": [0.5]}, "a column min_score, and bulk scoring does not take it"),
        ({"item_ids": [[1]], "item_keys": [["a"]]}, "both item_ids and item_keys"),
        ({"item_keys": [["a"]]}, "model reference@1 has no vocabulary"),
        ({"item_ids": [1.5]}, "holds double, not lists of whole numbers"),
        ({"clicks": [[1]]}, "no column item_ids, item_keys or user: it has clicks"),
    ],
)
def test_columns_that_no_row_could_be_answered_with_are_refused_by_name(
    reference: Scorer, columns: dict[str, list[Any]], sentence: str
) -> None:
    with pytest.raises(StartError, match=sentence):
        reference(pa.table(columns))
