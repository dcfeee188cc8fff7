"""Models that a real MLflow server keeps in S3: passed on by it, or fetched from there by the client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from recommender.client import Client
from tests.support.following import FOLLOWING, answer, until
from tests.support.mlflow_server import promote, push, running_mlflow, running_s3
from tests.support.serving import ServeHere
from tests.support.versions import answer_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

WAYS = {
    "handed on": ("--artifacts-destination", "s3://models/handed-on"),
    "fetched": ("--no-serve-artifacts", "--default-artifact-root", "s3://models/fetched"),
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_s3(tmp_path_factory.mktemp("s3")) as uri:
        yield uri


@pytest.fixture(params=WAYS)
def mlflow_uri(
    request: pytest.FixtureRequest, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An MLflow server with its artifacts in a bucket."""
    for key, value in {
        "MLFLOW_S3_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="models")
    with running_mlflow(tmp_path, *WAYS[request.param]) as uri:
        yield uri


async def test_a_version_is_pushed_served_and_followed(
    mlflow_uri: str, s3: str, tmp_path: Path, serve: ServeHere
) -> None:
    for version in (1, 2):
        push(mlflow_uri, "shop", version, tmp_path)
    await promote(mlflow_uri, "shop", "1")
    source = {"model": "models:/shop@champion", "registry_uri": mlflow_uri, "model_cache_dir": tmp_path / "cache"}
    async with serve(**source, **FOLLOWING) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client) == ("shop@1", answer_of(1))
        await promote(mlflow_uri, "shop", "2")
        await until(server, lambda seen: seen.serving == "shop@2")
        assert await answer(client) == ("shop@2", answer_of(2))

    kept = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="models")["Contents"]
    assert sum(each["Key"].endswith("/model.onnx") for each in kept) >= 2


def verified(mlflow_uri: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `recommender models verify` in a process that cannot import boto3 if the environment says so."""
    program = (
        "import os, sys\nif 'WITHOUT_BOTO3' in os.environ: sys.modules['boto3'] = None\n"
        "from recommender.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "models", "verify", "models:/shop/1", "--registry", mlflow_uri]
    known = {"RECOMMENDER_MODEL_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(command, env={**os.environ, **known, **environment}, capture_output=True, check=False)


@pytest.mark.parametrize("mlflow_uri", ["fetched"], indirect=True)
def test_a_store_that_cannot_be_read_is_told_in_a_sentence(mlflow_uri: str, tmp_path: Path) -> None:
    push(mlflow_uri, "shop", 1, tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        silent = verified(mlflow_uri, tmp_path, MLFLOW_S3_ENDPOINT_URL=nobody, AWS_MAX_ATTEMPTS="1")
    without = verified(mlflow_uri, tmp_path, WITHOUT_BOTO3="yes")
    good = verified(mlflow_uri, tmp_path)

    assert b"the registry cannot be asked" in silent.stderr
    assert b"needs boto3, which is not installed: install recommender[s3]" in without.stderr
    for failed in (silent, without):
        assert failed.returncode != 0
        assert b"Traceback" not in failed.stderr
    assert good.returncode == 0, good.stderr
