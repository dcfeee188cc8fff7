"""A small model that is open for bulk scoring, and jobs with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.job import Job, JobOptions
from recommender.bulk.model import BulkModel, open_bulk_model
from recommender.settings.settings import Settings
from tests.support.versions import K, write_version

MakeJob: TypeAlias = Callable[..., Job]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BulkModel]:
    """A model of 50 items with keys and a fallback list; batches have 16 rows."""
    folder = write_version(tmp_path_factory.mktemp("bulk") / "shop" / "1", 1, keys=50, fallback=(7, 3, 11))
    opened = asyncio.run(open_bulk_model(Settings(num_recommendations=K), str(folder), batch_rows=16))
    yield opened
    opened.close()


@pytest.fixture
def job(model: BulkModel) -> MakeJob:
    """Make a job over the files of a path, with parts of 100 rows."""

    def make(where: Path | str, part_rows: int = 100, **options: object) -> Job:
        columns = options.pop("columns", {})
        return Job(
            model,
            find_inputs(str(where)),
            JobOptions(columns=columns, part_rows=part_rows, **options),  # type: ignore[arg-type]
            longest=60.0,
        )

    return make
