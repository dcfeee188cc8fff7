"""Signals, exit codes and GC tuning."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from enum import IntEnum
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)


class ExitCode(IntEnum):
    """Exit codes of the process."""

    DRAINED = 0
    """Stopped as asked, with every accepted request answered."""
    NOT_STARTED = 2
    """A setting, the model or the port stopped the start; the log says why."""
    GRACE_RAN_OUT = 3
    """Stopped as asked; requests still open after the grace were given up."""
    ENGINE_LOST = 70
    """The engine hung or died; callers were answered. Restart the process."""
    EDGE_LOST = 71
    """Envoy, or the server inside it, ended unasked. Restart the process."""
    WORKERS_LOST = 72
    """A worker died again and again; the log says why."""


HELD_SECONDS = 2.0
"""How long a start may take to fail without a line in the log but its reason."""
_PR_SET_PDEATHSIG = 1
_YOUNG = 10_000
"""Live new objects that trigger a collection: some hundred calls in flight."""


class Stoppable(Protocol):
    """A server that a signal stops."""

    def stop(self) -> None:
        """Start to drain; returns at once."""


@contextlib.asynccontextmanager
async def stopping_on_signals(server: Stoppable) -> AsyncIterator[None]:
    """Drain the server on SIGTERM, SIGINT or SIGHUP.

    A SIGTERM or SIGINT after another one ends the process at once, as by default. SIGHUP, which may come twice where a
    terminal is closed, never does; it is ignored under `nohup`.
    """
    loop = asyncio.get_running_loop()
    told = (signal.SIGTERM, signal.SIGINT)
    signals = told if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*told, signal.SIGHUP)

    def on_signal(number: signal.Signals) -> None:
        log.info("signal", name=number.name)
        for each in told if number in told else ():
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


async def any_of(*waits: Coroutine[Any, Any, object] | asyncio.Task[Any]) -> None:
    """Wait until one of these is done. Unfinished coroutines are then cancelled; tasks continue."""
    ours = [asyncio.create_task(each) for each in waits if not isinstance(each, asyncio.Task)]
    tasks = [each for each in waits if isinstance(each, asyncio.Task)]
    try:
        await asyncio.wait([*ours, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ours:
            task.cancel()


def end_with_parent(parent: int) -> None:
    """Have Linux kill this process as soon as its parent, which is `parent`, has ended; on other systems if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


async def unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event, patience: float) -> None:
    """Do `work` until it is done or `stop` is set; in the latter case cancel it, and let it end for `patience` seconds.

    Raises what it raises before `stop`.
    """
    task = asyncio.create_task(work)
    try:
        await any_of(task, stop.wait())
        if task.done() and not stop.is_set():
            task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=patience)


def spare_collections() -> None:
    """Freeze long-lived objects (`gc.freeze`) and collect new ones less often. Call it once the model is loaded.

    By default the collector traverses everything that imports have made, again and again, while calls wait. At 700
    new objects it also traverses calls in flight. Reference counts free what calls leave; new cycles are still found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
