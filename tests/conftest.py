"""What many tests share: a running server, ways to call it, and an honest account of what did not run."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any, get_args

import hypothesis
import onnxruntime
import pytest
import structlog

from recommender.client import Client
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.engines import Load, engines
from tests.support.paths import WEIGHTS
from tests.support.remote import RemoteServer
from tests.support.serving import AnyServer, Serve, Shared, in_a_thread, server_of

_RECIPES = {
    "system": "just test-system",
    "slow": "just test-slow",
    "long": "just test-long",
    "peers": "just test-peers",
}
_NO_TESTS = ("fuzzing (`just fuzz`)", "soaking (`just soak`)", "other servers (`just bench-peers`)")
# No test asserts wall time: a busy machine is no failure.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
_DEBIAN = {
    "chromium": "chromium",
    "faketime": "faketime",
    "h2load": "nghttp2-client",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
# A server in the test's process uses the default logging, without a line for every call.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
_LOG = structlog.get_config()
_left_out: dict[str, int] = {}


@pytest.fixture(autouse=True, scope="session")
def _loggers_without_a_cache() -> Iterator[None]:
    """Let no logger keep the configuration of a command that runs in the tests' process, in a fixture or in a test."""
    configure = structlog.configure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            structlog, "configure", lambda **options: configure(**(options | {"cache_logger_on_first_use": False}))
        )
        yield


@pytest.fixture(autouse=True)
def _log_of_tests() -> Iterator[None]:
    """Undo what such a command does to the log: before the test, which may follow a fixture's command, and after it."""
    structlog.configure(**_LOG)
    yield
    structlog.configure(**_LOG)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both = "edge" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_edges")
    chosen = any(mark.args[0] == "edge" for mark in metafunc.definition.iter_markers("parametrize"))
    if both and not chosen:
        metafunc.parametrize("edge", get_args(Edge), scope="session")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("system"):
            missing = [program for program in marker.args if shutil.which(program) is None]
            # In CI a missing program is a missing installation step, so the test runs and fails.
            if missing and "CI" not in os.environ:
                packages = " ".join(sorted({_DEBIAN[program] for program in missing}))
                reason = f"needs {' '.join(missing)}: apt-get install {packages}"
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("cuda") and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and `just setup-cuda`"))
        if item.get_closest_marker("coreml") and sys.platform != "darwin":
            item.add_marker(pytest.mark.skip(reason="needs a Mac"))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        marker = next((marker for marker in _RECIPES if item.get_closest_marker(marker)), None)
        if marker is not None:
            _left_out[marker] = _left_out.get(marker, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of xdist has left out; all workers collect the same tests."""
    _left_out.update(getattr(node, "workeroutput", {}).get("left out", {}))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counted = [f"{count} tests marked {marker} (`{_RECIPES[marker]}`)" for marker, count in _left_out.items()]
    if counted:
        terminalreporter.write_line(f"left out: {', '.join([*counted, *_NO_TESTS])}")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the settings they make, not those of the shell they run in."""
    for key in tuple(os.environ):
        if key.upper().startswith(("RECOMMENDER_", "OTEL_")):
            monkeypatch.delenv(key)


@pytest.fixture(scope="session")
def edge() -> Edge:
    """The edge of the servers under test; tests marked `both_edges` run on each."""
    return "grpc"


@pytest.fixture
def serve(edge: Edge) -> Serve:
    """Start a server on a free port, with settings by field name; Envoy has a separate process."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[AnyServer]:
        server = server_of(Settings.model_validate({"port": 0, "weights_dir": WEIGHTS, "edge": edge, **settings}))
        await server.start()
        try:
            yield server
        finally:
            await server.close()

    return started


@pytest.fixture(scope="session")
def behind_envoy() -> Iterator[RemoteServer]:
    """A server behind Envoy at the default settings, shared: a process takes its time to start."""
    with in_a_thread(lambda: RemoteServer(Settings(port=0, weights_dir=WEIGHTS, edge="envoy"))) as server:
        yield server


@pytest.fixture(scope="module")
def shared(edge: Edge) -> Iterator[Shared]:
    """Start a server that the tests of a module share because none of them changes it: one for the same settings."""
    started: dict[frozenset[tuple[str, object]], AnyServer] = {}
    with ExitStack() as servers:

        def start(**settings: Any) -> AnyServer:
            asked = frozenset(settings.items())
            if asked not in started:
                known = Settings.model_validate({"port": 0, "weights_dir": WEIGHTS, "edge": edge, **settings})
                started[asked] = servers.enter_context(in_a_thread(lambda: server_of(known)))
            return started[asked]

        yield start


@pytest.fixture
async def server(edge: Edge, serve: Serve, request: pytest.FixtureRequest) -> AsyncIterator[AnyServer]:
    """A server of the reference model at the default settings."""
    if edge == "envoy":
        yield request.getfixturevalue("behind_envoy")
        return
    async with serve() as started:
        yield started


@pytest.fixture
async def client(server: AnyServer) -> AsyncIterator[Client]:
    """A client of that server."""
    async with Client(f"127.0.0.1:{server.port}") as connected:
        yield connected


@pytest.fixture
def load() -> Iterator[Load]:
    """Load engines that are closed when the test is over."""
    with engines() as loading:
        yield loading
