"""What a process of ours is to its parent: how it is stopped, and what its exit code says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator
from enum import IntEnum
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)


class ExitCode(IntEnum):
    """What the process tells its parent."""

    DRAINED = 0
    """Every accepted request was answered."""
    NOT_STARTED = 2
    """A setting, the model or the port stopped the start; the log has the sentence."""
    GRACE_RAN_OUT = 3
    """Stopped as asked, and requests that were still open after the grace were given up."""
    ENGINE_LOST = 70
    """The engine hung or died; callers were told, and a new process is needed."""
    EDGE_LOST = 71
    """Envoy, or the server inside it, ended without being asked; a new process is needed."""
    WORKERS_LOST = 72
    """A worker died again and again; the log says of what."""


_YOUNG = 10_000
"""Objects made and not freed before the collector looks at them: some hundred calls that are open at once."""


class Stoppable(Protocol):
    """What a signal stops."""

    def stop(self) -> None:
        """Drain and end; returns at once."""


@contextlib.asynccontextmanager
async def stopping_on_signals(server: Stoppable) -> AsyncIterator[None]:
    """SIGTERM and SIGINT drain the server; a second one ends the process at once, as the signal would."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal(number: signal.Signals) -> None:
        log.info("signal", name=number.name)
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        server.stop()

    for each in signals:
        loop.add_signal_handler(each, on_signal, each)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def spare_collections() -> None:
    """Have the garbage collector leave alone what exists by now, and look at what comes less often.

    For a process that has loaded what it serves. Python's defaults look through everything that the imports have
    made, again and again, while calls wait; and at 700 new objects they take calls that are open for garbage. What
    calls leave is freed by reference counts; cycles made from now on are still found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
