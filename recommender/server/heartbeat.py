"""One server of several: tied to its supervisor by two pipes.

Its standard output says a few times a second that the event loop turns, and whether calls are answered. Its standard
input says nothing until it ends, which means that the supervisor is gone, however that came about.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Protocol

BEAT_SECONDS = 0.25
_INPUT, _OUTPUT = 0, 1


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker says of itself."""

    serving: bool
    metrics_port: int

    def line(self) -> bytes:
        """As it goes through the pipe."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Beat | None:
        """What a line says; None if it is no beat: a library may have printed something."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None


class Tied(Protocol):
    """What a worker must know of its server."""

    @property
    def serving(self) -> bool:
        """Whether calls are answered and more are welcome."""

    @property
    def metrics_port(self) -> int:
        """Where its metrics are; 0 if nowhere."""

    def stop(self) -> None:
        """Drain and end; returns at once."""


async def beat(server: Tied) -> None:
    """Tell the supervisor how this worker is until cancelled; when the supervisor is gone, stop the server."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(_INPUT, 1024):
                loop.remove_reader(_INPUT)
                server.stop()

    for pipe in (_INPUT, _OUTPUT):
        os.set_blocking(pipe, False)
    loop.add_reader(_INPUT, read)
    try:
        while True:
            # A supervisor that does not read must not hold up callers.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(_OUTPUT, Beat(serving=server.serving, metrics_port=server.metrics_port).line())
            await asyncio.sleep(BEAT_SECONDS)
    finally:
        loop.remove_reader(_INPUT)
