"""Report whether telemetry reaches its collector: one warning when it fails, one line when it works again.

A failing collector never harms the service: what cannot be delivered is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from recommender.settings.otlp import Protocol, Signal, in_force, sdk_log_level

_LAST_SECONDS = 2.0
"""Time to deliver what is left when the server stops."""
_END_SECONDS = 0.2
"""Share of it for a thread to end."""
_TOLD_OTHERWISE = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")
"""Loggers of what `Delivery` says."""

log = structlog.get_logger(__name__)

R = TypeVar("R")


class Delivery:
    """Logs when delivery to a collector starts to fail and when all of it works again, not each attempt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[str, set[Signal]] = {}

    def note(self, endpoint: str, signal: Signal, *, delivered: bool, reason: str) -> None:
        """Record an attempt. Thread-safe."""
        with self._lock:
            failing = self._failing.setdefault(endpoint, set())
            before = bool(failing)
            (failing.discard if delivered else failing.add)(signal)
            changed = bool(failing) is not before
        if changed and delivered:
            log.info("telemetry is delivered again", endpoint=endpoint, signal=signal)
        elif changed:
            log.warning(
                "telemetry cannot be delivered: it is dropped until it can",
                endpoint=endpoint,
                signal=signal,
                reason=reason,
            )


class Attempts:
    """Attempts to export one signal over one protocol, noted with `delivery`."""

    def __init__(self, signal: Signal, protocol: Protocol, delivery: Delivery) -> None:
        self._signal = signal
        self._delivery = delivery
        url = in_force(signal, "ENDPOINT") or f"localhost:{4317 if protocol == 'grpc' else 4318}"
        # No password and no path: a collector counts as one, for all signals.
        self._endpoint = url.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
        self._open = True
        self.failing = False
        """Whether the last attempt failed."""

    def make(self, export: Callable[[], R], success: R) -> R:
        """Export, which returns `success` if all went well; raises what it raises."""
        _reasons.forget()
        reason = ""
        result: R | None = None
        try:
            result = export()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.failing = result is not success
            if self._open:  # a channel that `end` has closed proves nothing
                reason = reason or _reasons.last()
                self._delivery.note(self._endpoint, self._signal, delivered=not self.failing, reason=reason)
        return result

    def end(self) -> bool:
        """Note no more attempts; True the first time."""
        was_open, self._open = self._open, False
        return was_open


class NotedSpans(SpanExporter):
    """Exports spans by `exporter`."""

    def __init__(self, exporter: SpanExporter, attempts: Attempts) -> None:
        self._exporter = exporter
        self._attempts = attempts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans and note how that went."""
        return self._attempts.make(lambda: self._exporter.export(spans), SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        """End an attempt in progress; a second call is a no-op."""
        if self._attempts.end():
            self._exporter.shutdown()


class NotedRecords(LogRecordExporter):
    """Exports log records by `exporter`."""

    def __init__(self, exporter: LogRecordExporter, attempts: Attempts) -> None:
        self._exporter = exporter
        self._attempts = attempts

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Export records and note how that went."""
        return self._attempts.make(lambda: self._exporter.export(batch), LogRecordExportResult.SUCCESS)

    def shutdown(self) -> None:
        """End an attempt in progress; a second call is a no-op."""
        if self._attempts.end():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (the SDK's signature)
        """Nothing is held back."""
        return True


async def flush_and_end(
    flush: Callable[[], object],
    abort: Callable[[], object],
    end: Callable[[], object],
    *,
    deliverable: bool,
    spent: float = 0.0,
) -> None:
    """Deliver what is left, if it can be delivered, abort what takes longer, and end: within two seconds.

    `spent` of them have passed.
    """
    left = _LAST_SECONDS - _END_SECONDS - spent
    if deliverable and left > 0:
        await in_daemon(flush, left)
    abort()
    await in_daemon(end, _END_SECONDS)


async def in_daemon(work: Callable[[], object], seconds: float | None = None) -> None:
    """Do blocking work in a thread that a process does not wait for when it ends; give up waiting after `seconds`."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        except Exception:  # a bug here must not end the process
            log.exception("telemetry could not be sent")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="telemetry", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds)


class _Reasons(logging.Filter):
    """Captures the exporters' log lines, and keeps each thread's last reason for `Delivery`."""

    def __init__(self) -> None:
        super().__init__()
        self._of = threading.local()

    def forget(self) -> None:
        self._of.final = self._of.transient = self._of.late = ""

    def last(self) -> str:
        return next((said for kind in ("final", "transient", "late") if (said := getattr(self._of, kind, ""))), "")

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.levelno < logging.ERROR:
            self._of.transient = message
        elif "due to timeout" in message:  # which gives no reason: the last transient one is it, if there is one
            self._of.late = message
        else:
            self._of.final = message
        return False


_reasons = _Reasons()


def pass_on_warnings() -> None:
    """Route warnings of the SDK to our log, except those about delivery. OTEL_LOG_LEVEL sets from which level on."""
    level = logging.getLevelName(sdk_log_level())
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers = [_OurLog()]
    sdk.setLevel(level)
    sdk.propagate = False
    for name in _TOLD_OTHERWISE:
        told = logging.getLogger(name)
        told.handlers = [logging.NullHandler()]
        told.propagate = False


def take_reasons(exporter: object) -> None:
    """Have the logger of the exporter's module give its reasons to `Attempts`."""
    for module in {kind.__module__ for kind in type(exporter).__mro__}:
        if module.startswith("opentelemetry.exporter"):
            logger = logging.getLogger(module)
            # Before the exporter's own filter, which drops what it has seen within 20 seconds.
            logger.filters = [_reasons, *(each for each in logger.filters if each is not _reasons)]


class _OurLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            log.warning("opentelemetry", message=record.getMessage())
        else:
            log.info("opentelemetry", message=record.getMessage())
