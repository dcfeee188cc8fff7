"""A server on an event loop and a thread of its own, for tests that have none or share it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from recommender.server.envoy import EnvoyServer
from recommender.server.server import Server
from tests.support.remote import RemoteServer

PATIENCE = 60.0

S = TypeVar("S", bound=Server | RemoteServer | EnvoyServer)


@contextmanager
def in_a_thread(make: Callable[[], S]) -> Iterator[S]:
    """Make a server there, start it, and let it drain at the end."""
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
