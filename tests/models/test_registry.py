"""Models from a real MLflow server: promoted and rolled back under way, through failures of every kind."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recommender.cli.main import app
from recommender.client import Client
from recommender.errors import ModelError, StartError
from recommender.models.sources.mlflow import Registry
from tests.support.following import FOLLOWING, answer, load, until
from tests.support.mlflow_server import Way, promote, push, running_mlflow
from tests.support.process import running
from tests.support.serving import ServeHere
from tests.support.versions import K, alter, answer_of, write_version

TIMEOUT = 30.0
_numbers = itertools.count()

# MLflow takes long to start on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture
def way(mlflow_uri: str) -> Iterator[Way]:
    with Way(mlflow_uri).open() as opened:
        yield opened


@pytest.fixture
def name(mlflow_uri: str, tmp_path: Path) -> str:
    """A registered model with two versions, the first of which is the champion."""
    made = f"shop-{next(_numbers)}"
    for version in (1, 2):
        push(mlflow_uri, made, version, tmp_path)
    Registry(mlflow_uri).promote(made, "1", "champion")
    return made


@pytest.fixture
def settings(way: Way, name: str, tmp_path: Path) -> dict[str, object]:
    return {
        "model": f"models:/{name}@champion",
        "registry_uri": way.uri,
        "model_cache_dir": tmp_path / "cache",
        **FOLLOWING,
    }


async def test_a_promotion_and_a_rollback_are_served_and_no_request_notices(
    mlflow_uri: str, name: str, settings: dict[str, object], serve: ServeHere
) -> None:
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client, load(client) as answers:
        await promote(mlflow_uri, name, "2")
        await until(server, lambda seen: seen.serving == f"{name}@2")
        assert await answer(client, model=f"{name}@champion") == (f"{name}@2", answer_of(2))
        await asyncio.to_thread(Registry(mlflow_uri).roll_back, name, "champion")
        await until(server, lambda seen: seen.serving == f"{name}@1")
        assert await answer(client) == (f"{name}@1", answer_of(1))

    expected = {(f"{name}@{version}", answer_of(version)) for version in (1, 2)}
    assert {(got.model_version, got.item_ids) for got in answers} == expected


async def test_a_version_by_its_number_is_served(name: str, settings: dict[str, object], serve: ServeHere) -> None:
    numbered = {**settings, "model": f"models:/{name}/2"}
    async with serve(**numbered) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client, model=f"{name}@2") == (f"{name}@2", answer_of(2))


@pytest.mark.parametrize("wrong", ["models:/nowhere@champion", "models:/{name}@nobody", "models:/{name}/99"])
async def test_what_is_not_registered_stops_the_start(
    wrong: str, name: str, settings: dict[str, object], serve: ServeHere
) -> None:
    with pytest.raises(ModelError, match="has no"):
        async with serve(**{**settings, "model": wrong.format(name=name)}):
            pass


async def test_a_start_without_the_registry_serves_what_was_served_last(
    way: Way, name: str, settings: dict[str, object], serve: ServeHere
) -> None:
    async with serve(**settings):
        pass
    way.breaks("fail")
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client) == (f"{name}@1", answer_of(1))
        assert server.followings()[0].failing is not None
        way.breaks("pass")
        await until(server, lambda seen: seen.failing is None)


async def test_the_registry_s_password_is_told_to_nobody(
    way: Way, settings: dict[str, object], serve: ServeHere, tmp_path: Path
) -> None:
    secret = {**settings, "registry_uri": way.uri.replace("//", "//scout:secret@")}
    async with serve(**secret) as server, Client(f"127.0.0.1:{server.port}") as client:
        way.breaks("fail")
        seen = await until(server, lambda seen: seen.failing is not None)
        (told,) = await client.list_models(timeout=TIMEOUT)

    assert (
        told.source_failure == "SOURCE_UNREACHABLE: the source of the model cannot be asked; the server's log says why"
    )
    assert "secret" not in f"{seen} {told}"
    (note,) = (tmp_path / "cache" / "served").iterdir()
    assert "secret" not in note.read_text()
    assert note.stat().st_mode & 0o077 == 0


async def test_a_start_without_the_registry_and_without_a_cache_is_refused(
    way: Way, settings: dict[str, object], serve: ServeHere
) -> None:
    way.breaks("fail")
    with pytest.raises(StartError, match="the registry cannot be asked"):
        async with serve(**settings):
            pass


async def test_a_registry_that_fails_or_hangs_later_changes_nothing(
    mlflow_uri: str, way: Way, name: str, settings: dict[str, object], serve: ServeHere
) -> None:
    async with serve(**settings, registry_timeout_ms=5000) as server, Client(f"127.0.0.1:{server.port}") as client:
        way.breaks("hang")
        hung = await until(server, lambda seen: seen.failing is not None)
        assert "did not answer within 5 s" in (hung.failing or "")
        way.breaks("fail")
        await until(server, lambda seen: "500" in (seen.failing or ""))
        assert await answer(client) == (f"{name}@1", answer_of(1))
        await promote(mlflow_uri, name, "2")
        way.breaks("pass")
        way.released.set()
        await until(server, lambda seen: seen.serving == f"{name}@2")


async def test_a_download_that_breaks_off_is_never_used(
    mlflow_uri: str, way: Way, name: str, settings: dict[str, object], serve: ServeHere, tmp_path: Path
) -> None:
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        way.breaks("truncate")
        await promote(mlflow_uri, name, "2")
        await until(server, lambda seen: seen.failing is not None or seen.refused is not None)
        assert await answer(client) == (f"{name}@1", answer_of(1))
        assert len(list((tmp_path / "cache" / "versions").iterdir())) == 1
        way.breaks("pass")
        await until(server, lambda seen: seen.serving == f"{name}@2")


async def test_a_version_altered_in_the_registry_is_refused(
    mlflow_uri: str, name: str, settings: dict[str, object], serve: ServeHere, tmp_path: Path
) -> None:
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        version = await asyncio.to_thread(push, mlflow_uri, name, 3, tmp_path, spoil=alter)
        await promote(mlflow_uri, name, version.version)
        seen = await until(server, lambda seen: seen.refused is not None)
        assert seen.refused == f"{name}@3"
        assert "SHA-256" in (seen.refusal or "")
        assert await answer(client) == (f"{name}@1", answer_of(1))


async def test_a_cache_that_was_altered_is_filled_again(
    name: str, settings: dict[str, object], serve: ServeHere, tmp_path: Path
) -> None:
    async with serve(**settings):
        pass
    (entry,) = (tmp_path / "cache" / "versions").iterdir()
    alter(entry)
    async with serve(**settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client) == (f"{name}@1", answer_of(1))


async def test_killed_while_it_downloads_the_next_start_is_clean(way: Way, name: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings = {
        "RECOMMENDER_MODEL": f"models:/{name}@champion",
        "RECOMMENDER_REGISTRY_URI": way.uri,
        "RECOMMENDER_MODEL_CACHE_DIR": str(cache),
        "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
    }
    way.breaks("trickle")
    async with running(settings=settings, wait_for="listening") as server:
        while not list(cache.glob("versions/*.partial/*")):  # noqa: ASYNC110 (another process's files)
            await asyncio.sleep(0.05)
        server.signal(signal.SIGKILL)
        await server.exit_code()
    assert list(cache.glob("versions/*.partial"))
    way.breaks("pass")
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert await answer(client) == (f"{name}@1", answer_of(1))
    assert not list(cache.glob("versions/*.partial"))
    assert len(list(cache.glob("versions/*"))) == 1


def command(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == (2 if fails else 0), result.output
    return result.stderr if fails else result.stdout


def test_the_commands_from_push_to_rollback(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOMMENDER_REGISTRY_URI", mlflow_uri)
    monkeypatch.setenv("RECOMMENDER_NUM_RECOMMENDATIONS", str(K))
    monkeypatch.setenv("RECOMMENDER_MODEL_CACHE_DIR", str(tmp_path / "cache"))
    name = f"news-{next(_numbers)}"
    folders = [write_version(tmp_path / str(version), version) for version in (1, 2, 3)]

    pushed = json.loads(
        command(
            "push", str(folders[0]), "--name", name, "--alias", "champion", "--metric", "recall=0.3", "--tag", "a=b",
            "--json",
        )
    )  # fmt: skip
    assert (pushed["version"], pushed["aliases"], pushed["before"], pushed["tags"]["a"]) == (
        "1",
        ["champion"],
        None,
        "b",
    )
    assert "stands for version 2" in command("push", str(folders[1]), "--name", name, "--alias", "champion")
    assert f"{name}@3 is registered" in command("push", str(folders[2]), "--name", name)

    listed = json.loads(command("list", name, "--json"))
    assert [(each["version"], each["aliases"]) for each in listed] == [("3", []), ("2", ["champion"]), ("1", [])]
    assert [each["metrics"] for each in listed] == [{}, {}, {"recall": 0.3}]
    assert "champion" in command("list", name)
    shown = json.loads(command("show", f"models:/{name}@champion", "--json"))
    assert (shown["name"], shown["version"], shown["card"]["items"]) == (name, "2", 50)

    assert "which stood for version 2, stands for version 3" in command("promote", name, "3")
    for version in ("2", "1"):
        assert json.loads(command("rollback", name, "--json"))["version"] == version
    assert "no version before it" in command("rollback", name, fails=True)
    assert "has no version 9" in command("promote", name, "9", fails=True)

    write_version(tmp_path / "4", 4, spoil=alter)
    assert "SHA-256" in command("push", str(tmp_path / "4"), "--name", name, fails=True)
    assert len(json.loads(command("list", name, "--json"))) == 3


def test_what_is_pushed_is_a_model_to_mlflow_too(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow  # noqa: PLC0415 (slow)

    monkeypatch.setenv("RECOMMENDER_NUM_RECOMMENDATIONS", str(K))
    name = f"plain-{next(_numbers)}"
    command("push", str(write_version(tmp_path / "1", 1)), "--name", name, "--registry", mlflow_uri)
    mlflow.set_tracking_uri(mlflow_uri)
    signature = mlflow.models.get_model_info(f"models:/{name}/1").signature

    assert signature is not None
    assert signature.inputs.input_names() == ["history_length", "k", "user_history"]
    assert signature.outputs.input_names() == ["recommendations", "scores"]


def test_only_one_of_several_downloads_a_version(mlflow_uri: str, name: str, tmp_path: Path) -> None:
    from recommender.models.sources.cache import Cache  # noqa: PLC0415
    from recommender.models.sources.registry import RegisteredSource  # noqa: PLC0415

    source = RegisteredSource(f"models:/{name}@champion", Registry(mlflow_uri), Cache(tmp_path / "cache"))
    release = source.wanted()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(source.fetch(release, lambda _done, _total: None).sha256))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
