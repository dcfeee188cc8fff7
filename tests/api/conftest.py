"""Every test of the wire runs against both edges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from recommender.domain import Edge
from recommender.settings.settings import Settings
from tests.conftest import WEIGHTS, AnyServer, Serve
from tests.support.edges import edge  # noqa: F401 (pytest finds it here)
from tests.support.remote import RemoteServer
from tests.support.threads import in_a_thread


@pytest.fixture(scope="session")
def behind_envoy() -> Iterator[RemoteServer]:
    """A server behind Envoy at the default settings, for all tests that need no other: a process takes its time."""
    with in_a_thread(lambda: RemoteServer(Settings(port=0, weights_dir=WEIGHTS, edge="envoy"))) as server:
        yield server


@pytest.fixture
async def server(
    edge: Edge,  # noqa: F811 (the fixture)
    serve: Serve,
    request: pytest.FixtureRequest,
) -> AsyncIterator[AnyServer]:
    """A server of the reference model at the default settings."""
    if edge == "envoy":
        yield request.getfixturevalue("behind_envoy")
        return
    async with serve() as started:
        yield started
