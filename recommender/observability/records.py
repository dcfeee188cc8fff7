"""Log lines as records of OpenTelemetry, sent to a collector in addition to standard error."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from recommender.observability import log
from recommender.observability.delivery import Attempts, Delivery, NotedRecords, flush_and_end, take_reasons
from recommender.observability.otlp import record_exporter
from recommender.settings.masking import masked
from recommender.settings.otlp import Protocol

_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_NO_ATTRIBUTES = frozenset({"event", "level", "timestamp", "trace_id", "span_id", "exc_info"})


class RecordSender:
    """Sends log records in batches from a separate thread; a full queue drops records."""

    def __init__(self, resource: Resource, protocol: Protocol, delivery: Delivery) -> None:
        exporter = record_exporter(protocol)
        take_reasons(exporter)
        self._attempts = Attempts("logs", protocol, delivery)
        self._exporter = NotedRecords(exporter, self._attempts)
        self._processor = BatchLogRecordProcessor(self._exporter)
        provider = LoggerProvider(resource, shutdown_on_exit=False)
        provider.add_log_record_processor(self._processor)
        self._logger = provider.get_logger("recommender")
        log.also.add(self._emit)

    async def close(self, spent: float) -> None:
        """Send what is left within two seconds, of which `spent` have passed, and end the thread."""
        log.also.discard(self._emit)
        await flush_and_end(
            self._processor.force_flush,
            self._exporter.shutdown,
            self._processor.shutdown,
            deliverable=not self._attempts.failing,
            spent=spent,
        )

    def _emit(self, event: Mapping[str, object]) -> None:
        level = str(event["level"])
        self._logger.emit(
            LogRecord(
                timestamp=time.time_ns(),
                severity_text=level,
                severity_number=_SEVERITIES.get(level, SeverityNumber.UNSPECIFIED),
                context=_context(event),
                body=str(event["event"]),
                attributes={
                    **{key: _value(value) for key, value in event.items() if key not in _NO_ATTRIBUTES},
                    **_told_of(_exception(event.get("exc_info"))),
                },
            )
        )


def _context(event: Mapping[str, object]) -> Context:
    """The trace of the call that logs the line; empty without a call."""
    trace_id, span_id = event.get("trace_id"), event.get("span_id")
    if not isinstance(trace_id, str) or not isinstance(span_id, str):
        return Context()
    spot = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags.get_default())
    return set_span_in_context(NonRecordingSpan(spot), Context())


def _value(value: object) -> str | bool | int | float:
    return value if isinstance(value, str | bool | int | float) else str(value)


def _told_of(error: BaseException | None) -> dict[str, str]:
    """An exception by the names of the semantic conventions; the SDK would send its text unmasked."""
    if error is None:
        return {}
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {
        "exception.type": name,
        "exception.message": masked(str(error)),
        "exception.stacktrace": masked("".join(traceback.format_exception(error))),
    }


def _exception(told: object) -> BaseException | None:
    if isinstance(told, BaseException):
        return told
    if isinstance(told, tuple):
        return told[1] if isinstance(told[1], BaseException) else None
    return sys.exc_info()[1] if told else None
