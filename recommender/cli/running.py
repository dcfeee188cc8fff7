"""Run a command with settings, a log and an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import structlog
import typer

from recommender.cli.lazy import fail
from recommender.errors import StartError
from recommender.observability.log import Writer, set_up_logging
from recommender.settings.operations import LogLevel
from recommender.settings.settings import Settings

if sys.platform != "win32":
    import uvloop

    _LOOP: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
else:
    _LOOP = None

_LAST_LINES_SECONDS = 2.0
"""How long the end of the process waits until its log is read."""

R = TypeVar("R")

log = structlog.get_logger(__name__)


def load_settings(**overrides: object) -> Settings:
    """Settings with these, by field name, over the environment; a fault ends the process with its sentence."""
    return loaded(lambda: Settings.load(overrides))


def loaded(load: Callable[[], R]) -> R:
    """Call `load`; a StartError ends the process with its sentence."""
    try:
        return load()
    except StartError as error:
        fail(str(error), 2)


@contextlib.asynccontextmanager
async def open_log(
    settings: Settings, *, worker: int | None = None, level: LogLevel | None = None, hold: float = 0.0
) -> AsyncIterator[Writer]:
    """Log on standard error, and wait at the end until the last lines are written.

    `level` replaces the level of the settings. Lines of a start are held back for `hold` seconds, or until `release`:
    a StartError until then drops them, as its sentence says all.
    """
    operations = settings.operations
    writer = set_up_logging(level or operations.log_level, operations.log_format, worker=worker, hold=hold)
    try:
        yield writer
    except StartError:
        writer.drop()
        raise
    finally:
        await asyncio.to_thread(writer.finish, _LAST_LINES_SECONDS)


@contextlib.contextmanager
def failures_logged() -> Iterator[None]:
    """Log an error of a server that runs, with its traceback, and end with 1: `main` would make a sentence of some."""
    try:
        yield
    except Exception as error:
        log.exception("the server failed", exc_info=error)
        raise typer.Exit(1) from error


async def logged(settings: Settings, coroutine: Coroutine[Any, Any, R], level: LogLevel | None = None) -> R:
    """Run with a log on standard error, at this level or that of the settings."""
    async with open_log(settings, level=level):
        return await coroutine


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run on uvloop where it exists; a StartError ends the process with its sentence."""
    try:
        with asyncio.Runner(loop_factory=_LOOP) as runner:
            return runner.run(coroutine)
    except StartError as error:
        fail(str(error), 2)
