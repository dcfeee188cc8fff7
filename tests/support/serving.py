"""Servers under test, in this process or in Envoy's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias, TypeVar

from recommender.server.envoy import EnvoyServer
from recommender.server.server import Server
from recommender.settings.models import ModelSettings
from recommender.settings.network import Edge
from recommender.settings.settings import Settings
from tests.support.paths import model_cache
from tests.support.remote import RemoteServer

PATIENCE = 60.0

AnyServer: TypeAlias = Server | RemoteServer
ServeHere: TypeAlias = Callable[..., AbstractAsyncContextManager[Server]]
"""The type of the fixture `serve` in tests of the grpc edge that look into the server."""
Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[AnyServer]]

Shared: TypeAlias = Callable[..., AnyServer]
"""The type of the fixture `shared`."""

S = TypeVar("S", bound=Server | RemoteServer | EnvoyServer)


def server_of(settings: Settings) -> AnyServer:
    """The server that these settings want."""
    if settings.models.model_cache_dir == ModelSettings().model_cache_dir:
        settings = settings.replace(model_cache_dir=model_cache())
    return RemoteServer(settings) if settings.network.edge == "envoy" else Server(settings)


@contextmanager
def in_a_thread(make: Callable[[], S]) -> Iterator[S]:
    """Make and start a server on a separate event loop and thread; drain it at the end."""
    running: list[tuple[asyncio.AbstractEventLoop, S]] = []
    started = threading.Event()

    async def main() -> None:
        server = make()
        await server.start()
        running.append((asyncio.get_running_loop(), server))
        started.set()
        await server.run()
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        yield running[0][1]
    finally:
        for loop, server in running:
            loop.call_soon_threadsafe(server.stop)
        thread.join(PATIENCE)


@contextmanager
def served(model: Path, limit: int, edge: Edge) -> Iterator[int]:
    """Serve a model to synchronous tests; yields the port."""
    settings = Settings(port=0, model=model, num_recommendations=limit, default_timeout_ms=60_000, edge=edge)
    with in_a_thread(lambda: server_of(settings)) as server:
        yield server.port
