"""What only a server behind Envoy can have happen to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from recommender.client import Client
from recommender.errors import SettingsError, StartError
from recommender.server.envoy import EnvoyServer
from recommender.server.process import ExitCode
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.certificates import Authority
from tests.support.models import table, write_model
from tests.support.paths import WEIGHTS
from tests.support.process import PATIENCE, running
from tests.support.serving import Serve, in_a_thread
from tests.support.versions import K, answer_of, write_version

TIMEOUT = 30.0
BEHIND_ENVOY = {"RECOMMENDER_EDGE": "envoy"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc for the server's processes")


@pytest.fixture(scope="session")
def edge() -> Edge:
    return "envoy"


@pytest.fixture(scope="module")
def behind_envoy_port() -> Iterator[int]:
    """The port of a server at the default settings."""
    with in_a_thread(lambda: EnvoyServer(Settings(port=0, weights_dir=WEIGHTS, edge="envoy"))) as server:
        yield server.port


def alive(pid: int) -> bool:
    """Whether there is such a process, other than as a record of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def contents(folder: Path) -> list[bytes]:
    """What is in the files of a folder, sockets left out."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


async def gone(pid: int) -> None:
    """Wait until a process that is not ours to wait for has ended."""
    async with asyncio.timeout(PATIENCE):
        while alive(pid):  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)


async def test_without_a_folder_for_temporary_files_the_start_says_what_to_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    with pytest.raises(StartError, match=r"a folder for temporary files \(No such file or directory\): mount one"):
        await EnvoyServer(Settings(port=0, edge="envoy")).start()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
async def test_a_server_that_cannot_even_flush_its_log_ends_the_start(host: str) -> None:
    server = EnvoyServer(Settings(host=host, port=0, edge="envoy"), "tests.support.unable:app")
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(StartError, match="Envoy ended before it served"):
            await server.start()


async def test_without_pyvoy_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvoy", None)

    with pytest.raises(StartError, match=r"needs pyvoy, which is not installed.*install recommender\[envoy\]"):
        await EnvoyServer(Settings(port=0, edge="envoy")).start()


async def test_a_host_that_is_a_name_stops_the_start() -> None:
    with pytest.raises(StartError, match=r"RECOMMENDER_HOST is 'localhost'.* must be an IP address"):
        await EnvoyServer(Settings(host="localhost", port=0, edge="envoy")).start()


@pytest.mark.parametrize(
    "setting", [{"workers": 2}, {"min_ping_interval_ms": 5000}, {"max_connection_age_grace_ms": 1}]
)
def test_a_setting_that_envoy_would_not_hold_is_refused(setting: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="cannot be held with RECOMMENDER_EDGE=envoy"):
        Settings.model_validate({"edge": "envoy", **setting})


async def test_if_envoy_dies_callers_are_told_and_the_exit_code_says_so() -> None:
    async with running(settings=BEHIND_ENVOY) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert (await client.recommend([1], timeout=TIMEOUT)).item_ids
        (envoy,) = server.children()
        os.kill(envoy, signal.SIGKILL)
        code = await server.exit_code()
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await client.recommend([1], timeout=TIMEOUT)

    assert code == ExitCode.EDGE_LOST
    assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.log[-1]["event"] == "envoy lost"


async def test_envoy_does_not_outlive_the_process_that_started_it() -> None:
    async with running(settings=BEHIND_ENVOY) as server:
        (envoy,) = server.children()
        server.signal(signal.SIGKILL)
        await gone(envoy)
        assert await server.exit_code() == -signal.SIGKILL


async def test_a_private_key_is_on_no_disk_and_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    files = Authority().write_server(tmp_path)
    settings = {f"RECOMMENDER_{name.upper()}": str(path) for name, path in files.items()}
    with tempfile.TemporaryDirectory() as name:  # short, as Envoy's socket in it must be
        folder = Path(name)
        async with running(settings={**BEHIND_ENVOY, **settings, "TMPDIR": name}) as server:
            (envoy,) = server.children()
            written = contents(folder)
            server.signal(signal.SIGKILL)
            await gone(envoy)
            await server.exit_code()
        left = contents(folder)

    assert any(b"BEGIN CERTIFICATE" in content for content in written)
    assert not [content for content in written if b"PRIVATE KEY" in content]
    assert left == []


async def test_a_folder_too_long_for_a_socket_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    async with running(settings={**BEHIND_ENVOY, "TMPDIR": str(folder)}, wait_for=None) as server:
        code = await server.exit_code()

    assert code == ExitCode.NOT_STARTED
    assert "name a shorter folder in TMPDIR" in server.text
    assert list(folder.iterdir()) == []


async def test_after_a_drain_nothing_of_envoy_is_left() -> None:
    async with running(settings=BEHIND_ENVOY) as server:
        (envoy,) = server.children()
        server.signal(signal.SIGTERM)
        code = await server.exit_code()

    assert code == ExitCode.DRAINED
    assert not alive(envoy)


async def test_a_new_version_serves_and_no_request_notices(tmp_path: Path) -> None:
    write_version(tmp_path / "shop" / "1", 1)
    settings = {
        **BEHIND_ENVOY,
        "RECOMMENDER_MODEL": str(tmp_path / "shop"),
        "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
        "RECOMMENDER_MODEL_POLL_MS": "50",
    }
    seen = []
    async with running(settings=settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        write_version(tmp_path / "shop" / "2", 2)
        served = asyncio.create_task(server.until("version served"))
        while not served.done():
            answer = await client.recommend([1, 2, 3], timeout=TIMEOUT)
            seen.append((answer.model_version, answer.item_ids))
            await asyncio.sleep(0.01)  # the proof runs at low priority
        after = await client.recommend([1, 2, 3], timeout=TIMEOUT)
        shutil.rmtree(tmp_path / "shop" / "2")
        back = await server.until("version served")
        rolled_back = await client.recommend([1, 2, 3], timeout=TIMEOUT)

    assert set(seen) <= {("shop@1", answer_of(1)), ("shop@2", answer_of(2))}
    assert seen[0] == ("shop@1", answer_of(1))
    assert (after.model_version, after.item_ids) == ("shop@2", answer_of(2))
    assert back["version"] == "shop@1"
    assert (rolled_back.model_version, rolled_back.item_ids) == ("shop@1", answer_of(1))


async def test_a_caller_who_leaves_is_noticed_while_its_request_waits(serve: Serve, tmp_path: Path) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=60)
    async with (
        serve(model=model, num_recommendations=5, max_batch_size=1) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        calls = [asyncio.create_task(client.recommend([row % 50], timeout=TIMEOUT)) for row in range(100)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in calls:
            call.cancel()
        await asyncio.wait_for(server.batcher.drain(), TIMEOUT)
        seen = server.batcher.statistics()

    assert seen.cancelled > seen.answered


def test_who_speaks_no_grpc_is_told_what_is_spoken_here(behind_envoy_port: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{behind_envoy_port}/", timeout=TIMEOUT)

    assert refused.value.code == 415
    assert b"gRPC is spoken here" in refused.value.read()


async def test_a_method_that_is_not_there_is_unimplemented(behind_envoy_port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{behind_envoy_port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/no.such.Service/Method")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(b"", timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
