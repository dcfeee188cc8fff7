"""Heartbeat of a worker to its supervisor, over two pipes.

Four times a second the worker's standard output says that its event loop runs, and whether it answers calls. Standard
input carries nothing: its end means that the supervisor is gone.
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
    """One heartbeat: whether calls are answered, and the port of the worker's metrics, 0 if none."""

    serving: bool
    metrics_port: int

    def line(self) -> bytes:
        """Serialize as a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Beat | None:
        """Parse a line; None if it is not a beat, as libraries may print lines too."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None


class Tied(Protocol):
    """The server of a worker, as the heartbeat sees it."""

    @property
    def serving(self) -> bool:
        """Whether calls are answered and more are welcome."""

    @property
    def metrics_port(self) -> int:
        """Port of its metrics; 0 without metrics."""

    def stop(self) -> None:
        """Start to drain; returns at once."""


async def beat(server: Tied) -> None:
    """Send beats until cancelled; stop the server when the supervisor is gone."""
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
            # A supervisor that does not read must not block the event loop.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(_OUTPUT, Beat(serving=server.serving, metrics_port=server.metrics_port).line())
            await asyncio.sleep(BEAT_SECONDS)
    finally:
        loop.remove_reader(_INPUT)
