"""A server behind Envoy for which the system has no thread: it cannot be made, nor started, nor its log flushed.

A host of 127.0.0.2 means that it can be made.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn, cast

from recommender.server import embedded
from recommender.settings.settings import Settings


async def no_thread(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


class UnableServer:
    """A server that cannot start."""

    def __init__(self, settings: Settings, *_: object) -> None:
        if settings.network.host != "127.0.0.2":
            raise RuntimeError("can't start new thread")

    async def start(self) -> None:
        await no_thread()

    def stop(self) -> None:
        pass


embedded.Server = cast("Any", UnableServer)  # type: ignore[attr-defined]
asyncio.to_thread = cast("Any", no_thread)
app = embedded.Embedded()
