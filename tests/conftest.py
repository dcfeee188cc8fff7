"""What many tests share: a running server, ways to call it, and an honest account of what did not run."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias, get_args

import onnxruntime
import pytest
import structlog

from recommender.client import Client
from recommender.domain import Edge
from recommender.server.server import Server
from recommender.settings.settings import Settings
from tests.support.remote import RemoteServer

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"

AnyServer: TypeAlias = Server | RemoteServer
ServeHere: TypeAlias = Callable[..., AbstractAsyncContextManager[Server]]
"""What `serve` is where the edge is grpc, for tests that look into the server."""
Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[AnyServer]]

_RECIPES = {"system": "just test-system", "long": "just test-long"}
_DEBIAN = {"chromium": "chromium", "h2load": "nghttp2-client", "prometheus": "prometheus", "promtool": "prometheus"}
# A server in the test's process logs as one that nobody set up: without a line for every call.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
_deselected: Counter[str] = Counter()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "edge" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_edges"):
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
        for marker in _RECIPES:
            if item.get_closest_marker(marker):
                _deselected[marker] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker, count in _deselected.items():
        terminalreporter.write_line(f"not run: {count} tests marked `{marker}`; `{_RECIPES[marker]}` runs them")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the settings they make, not those of the shell they run in."""
    for key in tuple(os.environ):
        if key.upper().startswith(("RECOMMENDER_", "OTEL_")):
            monkeypatch.delenv(key)


@pytest.fixture(scope="session")
def edge() -> Edge:
    """The edge of the servers under test; tests of the wire take both."""
    return "grpc"


@pytest.fixture
def serve(edge: Edge) -> Serve:
    """Start a server on a free port, with the settings given by field name; Envoy has a process of its own."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[AnyServer]:
        server = server_of(Settings.model_validate({"port": 0, "weights_dir": WEIGHTS, "edge": edge, **settings}))
        await server.start()
        try:
            yield server
        finally:
            await server.close()

    return started


def server_of(settings: Settings) -> AnyServer:
    """The server that these settings want."""
    return RemoteServer(settings) if settings.edge == "envoy" else Server(settings)


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[AnyServer]:
    """A server of the reference model at the default settings."""
    async with serve() as started:
        yield started


@pytest.fixture
async def client(server: AnyServer) -> AsyncIterator[Client]:
    """A client of that server."""
    async with Client(f"127.0.0.1:{server.port}") as connected:
        yield connected
