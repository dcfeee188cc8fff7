"""Jobs from and into an object store, here moto's of S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest

from recommender.bulk.files.inputs import find_inputs
from recommender.bulk.files.output import open_folder
from recommender.bulk.pipeline import StoppedError
from tests.bulk.conftest import MakeJob
from tests.support.bulk import table_of
from tests.support.mlflow_server import running_s3

pytestmark = pytest.mark.long


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket."""
    with running_s3(tmp_path) as uri:
        for key, value in {
            "AWS_ENDPOINT_URL": uri,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(key, value)
        boto3.client("s3", endpoint_url=uri).create_bucket(Bucket="data")
        yield "s3://data"


def test_a_job_reads_from_a_bucket_writes_into_one_and_goes_on(s3: str, tmp_path: Path, job: MakeJob) -> None:
    store = boto3.client("s3")
    for place in range(3):
        rows = [{"user": row, "item_ids": [row % 50]} for row in range(place * 100, place * 100 + 100)]
        pq.write_table(table_of(rows), tmp_path / "part.parquet")
        store.upload_file(str(tmp_path / "part.parquet"), "data", f"in/{place}.parquet")
    folder = open_folder(f"{s3}/out")
    stopped = job(f"{s3}/in", 50)
    with pytest.raises(StoppedError):
        stopped.run(folder, lambda _: stopped.stop())

    summary = job(f"{s3}/in", 50).run(folder, lambda _: None)

    assert (summary.counts.rows, summary.parts) == (300, 6)
    outputs = find_inputs(f"{s3}/out")
    assert [row for table, _, _ in outputs.tables() for row in table.column("user").to_pylist()] == list(range(300))
    assert find_inputs(f"{s3}/in/[01].parquet").rows == 200
