"""What many tests share: settings for a server of one's own, a running server, and ways to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from recommender.client import Client
from recommender.server import Server
from recommender.settings import Settings

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests see the settings they make, not those of the shell they run in."""
    import os  # noqa: PLC0415

    for key in tuple(os.environ):
        if key.upper().startswith("RECOMMENDER_"):
            monkeypatch.delenv(key)
    return


@pytest.fixture
def serve() -> Serve:
    """Start a server in this process, on a free port, with the settings given by field name."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[Server]:
        server = Server(Settings.model_validate({"port": 0, "weights_dir": WEIGHTS, **settings}))
        await server.start()
        try:
            yield server
        finally:
            await server.close()

    return started


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    """A server of the reference model at the default settings."""
    async with serve() as started:
        yield started


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of that server."""
    async with Client(f"127.0.0.1:{server.port}") as connected:
        yield connected
