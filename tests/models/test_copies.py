"""Files that are mapped while they serve: copied once, to a place where no other process writes."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from recommender.client import Client
from recommender.errors import SourceError
from recommender.models.artifact import Artifact, Release, open_artifact
from recommender.models.card import CARD_NAME, MODEL_NAME
from recommender.models.sources.cache import Cache
from recommender.models.sources.copies import keep_copied, open_copied
from recommender.models.sources.folder import FolderSource
from recommender.models.sources.opening import open_cache
from recommender.settings.models import ModelSettings
from tests.support import models
from tests.support.process import running
from tests.support.versions import K, write_version

TIMEOUT = 30.0


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def open_folder(folder: Path, cache: Cache) -> Artifact:
    return open_copied(folder, Release("shop", folder.name), cache)


def is_in(artifact: Artifact, cache: Cache) -> bool:
    return cache.folder in artifact.path.parents


@pytest.mark.parametrize(
    "kind",
    [
        "vocabulary",
        "user vocabulary",
        "type vocabulary",
        "feature vocabulary",
        "external weights",
        "no card",
        "another name",
    ],
)
def test_what_is_mapped_is_opened_from_one_copy(tmp_path: Path, cache: Cache, kind: str) -> None:
    if kind == "no card":
        model = models.batched(tmp_path / "5_model.onnx", models.table(2000), external=True)
    else:
        keys = 2000 if kind in ("vocabulary", "another name") else 0
        names, rows = ["anna", "bert", "cleo"], np.ones((4, 8), np.float32)
        others: dict[str, dict[str, Any]] = {
            "user vocabulary": {"users": rows, "user_keys": names},
            "type vocabulary": {"types": rows, "type_keys": names},
            "feature vocabulary": {"users": rows, "featured": True},
        }
        more = others.get(kind, {"external": keys == 0})
        model = write_version(tmp_path / "1", 1, items=2000, keys=keys, **more) / MODEL_NAME
    if kind == "another name":
        (model.parent / CARD_NAME).rename(model.parent / "10_model.card.json")
        card = model.parent / "10_model.card.json"
        card.write_text(card.read_text().replace(MODEL_NAME, "10_model.onnx"))
        model = model.rename(model.with_name("10_model.onnx"))
    first, second = (open_copied(model, None, cache) for _ in range(2))

    assert is_in(first, cache)
    assert first == second
    assert all(os.access(file, os.R_OK) and file.stat().st_mode & 0o222 == 0 for file in first.path.parent.iterdir())
    for file in model.parent.glob("*model*"):
        os.truncate(file, 0)
    assert open_artifact(first.path).sha256 == first.sha256


def test_what_is_not_mapped_is_not_copied(tmp_path: Path, cache: Cache) -> None:
    folder = write_version(tmp_path / "1", 1)
    keep_copied(folder, Release("shop", "1"), cache, "shop")

    assert open_folder(folder, cache).path == folder / MODEL_NAME
    assert not cache.folder.exists()


def test_a_copy_that_was_altered_is_made_again(tmp_path: Path, cache: Cache) -> None:
    folder = write_version(tmp_path / "1", 1, keys=50)
    copy = open_folder(folder, cache).path
    copy.chmod(0o600)
    copy.write_bytes(b"altered")

    assert open_folder(folder, cache).path.read_bytes() == (folder / MODEL_NAME).read_bytes()


def test_copies_that_serve_no_longer_go_with_time(tmp_path: Path, cache: Cache) -> None:
    for version in range(6):
        folder = write_version(tmp_path / str(version), version, keys=50)
        assert is_in(open_folder(folder, cache), cache)
        keep_copied(folder, Release("shop", str(version)), cache, "shop")

    assert len(list((cache.folder / "versions").iterdir())) == cache.kept + 1


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(tmp_path: Path, cache: Cache) -> None:
    folder = write_version(tmp_path / "1", 1, keys=50)
    with room_for(100), pytest.raises(SourceError, match="set RECOMMENDER_MODEL_CACHE_DIR to a folder"):
        open_folder(folder, cache)

    assert not list((cache.folder / "versions").iterdir())
    assert is_in(open_folder(folder, cache), cache)


def test_a_cache_that_cannot_be_made_is_a_sentence_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = write_version(tmp_path / "1", 1, keys=50)
    cache = open_cache(ModelSettings(model_cache_dir=tmp_path / "file" / "cache"))
    with pytest.raises(SourceError, match=r"cannot be used: Not a directory .* set RECOMMENDER_MODEL_CACHE_DIR"):
        open_folder(folder, cache)


def test_where_nothing_can_be_written_a_model_that_is_not_copied_serves_and_others_get_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    plain, with_keys = write_version(tmp_path / "1", 1), write_version(tmp_path / "2", 2, keys=50)

    assert open_folder(plain, open_cache(ModelSettings())).path.parent == plain
    with pytest.raises(SourceError, match=r"cannot be used: Not a directory .* set RECOMMENDER_MODEL_CACHE_DIR"):
        open_folder(with_keys, open_cache(ModelSettings()))


def test_without_a_home_the_cache_is_a_temporary_folder_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = write_version(tmp_path / "1", 1, keys=50)
    with structlog.testing.capture_logs() as log:
        artifact = open_folder(folder, open_cache(ModelSettings()))
    spare = artifact.path.parents[2]

    assert spare.parent == tmp_path
    assert spare.stat().st_mode & 0o077 == 0
    assert [line["event"] for line in log] == ["the model cache is a temporary folder"]
    spare.chmod(0o777)
    with pytest.raises(SourceError, match="not this user's own folder"):
        open_folder(folder, open_cache(ModelSettings()))


def test_a_home_that_nobody_has_is_a_sentence(tmp_path: Path) -> None:
    folder = write_version(tmp_path / "1", 1, keys=50)
    with pytest.raises(SourceError, match=r"this user has no home .* set RECOMMENDER_MODEL_CACHE_DIR"):
        open_folder(folder, open_cache(ModelSettings(model_cache_dir=Path("~nobody-of-this-name/cache"))))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as a user that folders of mode 0700 keep out, if this one is root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_version_folder_that_cannot_be_read_is_passed_over_with_one_warning() -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        root.chmod(0o755)
        for version in (1, 2, 3):
            write_version(root / str(version), version)
        source = FolderSource(root, Cache(root / ".cache"))
        (root / "3").chmod(0o700 if os.geteuid() == 0 else 0)
        with as_nobody(), structlog.testing.capture_logs() as log:
            assert [source.wanted().version for _ in range(2)] == ["2", "2"]
        (root / "3").chmod(0o755)
        assert source.wanted().version == "3"

    assert [(line["log_level"], Path(line["folder"]).name) for line in log] == [("warning", "3")]


async def test_files_truncated_in_place_harm_no_server(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = write_version(tmp_path / "shop" / "1", 1, items=2000, keys=2000, external=True)
    settings = {"RECOMMENDER_MODEL": str(tmp_path / "shop@1"), "RECOMMENDER_NUM_RECOMMENDATIONS": str(K)}
    settings |= {"HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        before = await client.recommend(item_keys=["v1-3"], timeout=TIMEOUT)
        for file in folder.iterdir():
            os.truncate(file, 0)
        after = await client.recommend(item_keys=["v1-3"], timeout=TIMEOUT)
        maps = Path(f"/proc/{server.process.pid}/maps")
        mapped = maps.read_text(encoding="utf-8")  # noqa: ASYNC240 (of the kernel's)

    assert before.item_keys == after.item_keys
    assert "the model cache is a temporary folder" in server.text
    assert f"{folder}/" not in mapped
