"""One imported model for all tests that only look at it: an export takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recommender.cli.main import app

ITEMS = 60


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["import", *map(str, arguments)])
    return done.exit_code, done.output


def interactions(path: Path, *, users: int = 30) -> Path:
    """Users who take items in the order of time; the file is in another order."""
    random = np.random.default_rng(2)
    lines = [
        f"{user},sku-{item},{when}"
        for user in range(users)
        for when, item in enumerate(random.choice(ITEMS // 2, 3 + user % 5, replace=False))
    ]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(reversed(lines)) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Imported:
    """What `recommender import` was given and what it wrote and said."""

    vectors: Path
    interactions: Path
    model: Path
    told: str


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("imported")
    vectors = folder / "vectors.txt"
    rows = np.random.default_rng(1).normal(size=(ITEMS, 8))
    lines = [f"sku-{item} {' '.join(f'{number:.6f}' for number in row)}" for item, row in enumerate(rows)]
    vectors.write_text(f"{ITEMS} 8\n" + "\n".join(lines) + "\n", encoding="utf-8")
    data = interactions(folder / "log.csv")
    model = folder / "shop" / "1" / "model.onnx"
    code, told = run(
        "vectors", vectors, "--interactions", data, "--evaluate", data, "--output", model, "--name", "shop"
    )  # fmt: skip
    assert code == 0, told
    return Imported(vectors, data, model, told)
