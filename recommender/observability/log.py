"""Structured log on standard error: rate-limited, and never blocking its callers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, TextIO, TypeAlias, cast

import structlog

from recommender.settings.masking import masked
from recommender.settings.operations import LogFormat, LogLevel


class Limiter:
    """A structlog processor that passes `burst` events of one name and level per `seconds`, and counts the others.

    The next event that passes has their count in `suppressed`. Debug events are never limited.
    """

    def __init__(self, burst: int = 10, seconds: float = 10.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}
        """Start and count of the current interval by level and name; bounded by the events in the code."""

    def __call__(
        self, _logger: structlog.typing.WrappedLogger, level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Return the event; raises DropEvent if it is suppressed."""
        if level == "debug":
            return event
        now = self._clock()
        key = (level, str(event["event"]))
        since, count = self._seen.get(key, (now, 0))
        if now - since >= self._seconds:
            suppressed = count - self._burst
            since, count = now, 0
            if suppressed > 0:
                event["suppressed"] = suppressed
        self._seen[key] = since, count + 1
        if count >= self._burst:
            raise structlog.DropEvent
        return event


Listener: TypeAlias = Callable[[Mapping[str, object]], None]

also: Final[set[Listener]] = set()
"""Listeners that get each event in addition to standard error. They must not block, log or raise."""


def _tell_listeners(
    _logger: structlog.typing.WrappedLogger, _level: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    for tell in tuple(also):
        tell(event)
    return event


class Target(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Write a line, and wait until it is taken."""

    def flush(self) -> object:
        """Pass on what is buffered."""


class _StandardError:
    """Descriptor 2 without Python's buffer and its lock: the end of the process would wait for both."""

    def write(self, text: str, /) -> None:
        left = text.encode(errors="backslashreplace")
        while left:
            left = left[os.write(2, left) :]

    def flush(self) -> None:
        pass


class Writer:
    """A file whose `write` never blocks: a thread passes lines on to `target`.

    If `target` is not read, up to `most` lines wait and later ones are dropped. A warning counts the dropped lines
    once there is room. The first lines are held back until `release`, for `hold` seconds at most.
    """

    def __init__(self, target: Target, most: int = 10_000, *, hold: float = 0.0) -> None:
        self._target = target
        self._hold = hold
        self._released = threading.Event()
        self._lines: queue.Queue[str | None] = queue.Queue(most)
        self._lost = 0
        self._thread = threading.Thread(target=self._pass_on, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue a line."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._lost += 1
        return len(text)

    def flush(self) -> None:
        """No-op: the thread flushes each line."""

    def release(self) -> None:
        """Write the lines that are held back; a no-op if none are."""
        self._released.set()

    def drop(self) -> None:
        """Forget the lines that are held back; a no-op once they are released."""
        with contextlib.suppress(queue.Empty):
            while not self._released.is_set():
                self._lines.get_nowait()

    def finish(self, timeout: float) -> bool:
        """Write what waits within `timeout` seconds; True if all of it was written. The last call."""
        deadline = time.monotonic() + timeout
        self.release()
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        return not self._thread.is_alive()

    def _pass_on(self) -> None:
        self._released.wait(self._hold)
        self.release()
        while (line := self._lines.get()) is not None:
            try:
                self._target.write(line)
                self._target.flush()
            except (OSError, ValueError):  # closed for good; the service continues without a log
                continue
            if self._lost:
                lost, self._lost = self._lost, 0
                structlog.get_logger(__name__).warning("log lines were lost: standard error was not read", lines=lost)


def set_up_logging(level: LogLevel, log_format: LogFormat, *, worker: int | None = None, hold: float = 0.0) -> Writer:
    """Write events to standard error: one JSON object a line, or text; `auto` is text in a terminal.

    Call `finish` on the returned writer, or the last lines may be missing. With several workers each line has the
    worker's number as `worker`; lines of a call have the variables bound with `structlog.contextvars`. Names and
    passwords in URLs are masked. Call it once, before anything logs.

    The first lines are held back for at most `hold` seconds: until the writer is released or dropped, or until an error
    is logged. At level debug none are.
    """
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        # The richer formatter prints local variables, and with them what users have seen.
        [
            structlog.dev.ConsoleRenderer(
                pad_event_to=0,
                sort_keys=False,
                colors=sys.stderr.isatty(),
                exception_formatter=_plain_traceback,
            )
        ]
        if text
        else [structlog.processors.format_exc_info, _mask, _event_first, structlog.processors.JSONRenderer()]
    )
    writer = Writer(_StandardError(), hold=0.0 if level == "debug" else hold)
    structlog.configure(
        processors=[
            Limiter(),
            _releasing_on_error(writer),
            structlog.contextvars.merge_contextvars,
            *(() if worker is None else (_numbered(worker),)),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _mask,
            _tell_listeners,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, writer)),
        cache_logger_on_first_use=True,
    )
    return writer


def _mask(
    _logger: structlog.typing.WrappedLogger, _level: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Mask names and passwords in addresses, in values of any type."""
    return {key: _masked(value) for key, value in event.items()}


def _masked(value: object) -> object:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: _masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(each) for each in value]
    return masked(str(value)) if isinstance(value, Path) else value


def _plain_traceback(file: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    file.write(masked(text.getvalue()))


def _event_first(
    _logger: structlog.typing.WrappedLogger, _level: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Put what happened before its circumstances."""
    return {"event": event.pop("event"), **event}


def _releasing_on_error(writer: Writer) -> structlog.typing.Processor:
    def release(
        _logger: structlog.typing.WrappedLogger, level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if level in ("error", "critical"):
            writer.release()
        return event

    return release


def _numbered(worker: int) -> structlog.typing.Processor:
    def add_worker(
        _logger: structlog.typing.WrappedLogger, _level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault("worker", worker)
        return event

    return add_worker
