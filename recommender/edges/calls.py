"""Calls in progress on any edge: request id, duration, status, trace."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import structlog
from google.rpc import code_pb2
from structlog.contextvars import STRUCTLOG_KEY_PREFIX, bind_contextvars, unbind_contextvars

from recommender.api.metadata import REQUEST_ID_KEY, request_id_of
from recommender.api.status import FailedCall, refusal
from recommender.histogram import CallExemplar, Durations, bucket
from recommender.settings.otlp import ExemplarFilter

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_NAMES = {number: name for name, number in code_pb2.Code.items()}
_request_id: ContextVar[str] = ContextVar(f"{STRUCTLOG_KEY_PREFIX}request_id")
"""As structlog would bind it, in a quarter of the time: every log line on behalf of a call carries its id."""


class CallTrace(Protocol):
    """The span of a sampled call."""

    trace_id: str
    span_id: str

    def end(self, code: int) -> None:
        """End the span with a google.rpc code."""


class CallTracer(Protocol):
    """Traces sampled calls."""

    context_keys: frozenset[str]
    """Metadata keys that `begin` reads."""

    def begin(self, method: str, request_id: str, carrier: Mapping[str, str]) -> CallTrace | None:
        """Start the call's span; returns None if the call is not sampled."""


class CallSampler(Protocol):
    """Samples calls for an edge whose transport makes the spans itself."""

    @property
    def provider(self) -> TracerProvider:
        """Makes those spans."""

    def samples(self, method: str, metadata: Collection[tuple[str, str | bytes]]) -> bool:
        """Whether a call is sampled. The span that is started next agrees."""


class ProtocolError(Exception):
    """A call that breaks gRPC's own rules; it ends with the status `code`, a google.rpc code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call:
    """A call in progress of which nothing is kept, such as a health check."""

    __slots__ = ("request_id",)

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    @classmethod
    def begin(cls, metadata: Collection[tuple[str, str | bytes]]) -> Call:
        """Begin a call with the caller's request id, or a new one."""
        return cls(request_id_in(metadata))

    def end(self, code: int) -> None:
        """End the call with a google.rpc code. Only the first end counts."""

    def fail(self, error: Exception) -> FailedCall:
        """End the call with the status for an error."""
        if isinstance(error, ProtocolError):
            failed = FailedCall(error.code, str(error), ((REQUEST_ID_KEY, self.request_id),))
        else:
            failed = refusal(error, self.request_id)
        self.end(failed.code)
        return failed


class Calls:
    """The recorded calls of one server. `durations` counts ended calls, by method and google.rpc code.

    `exemplars` selects the calls of which the last in each bucket is kept.
    """

    def __init__(self, tracer: CallTracer | None = None, exemplars: ExemplarFilter = "trace_based") -> None:
        self._tracer = tracer
        self._keeps_sampled = exemplars != "always_off"
        self._keeps_all = exemplars == "always_on"
        # Bound once: looking a logger up in every call costs more than everything else here.
        self.log_debug = structlog.get_logger(__name__).bind().debug
        self.durations: dict[tuple[str, int], Durations] = {}
        self.exemplars: dict[tuple[str, int], dict[int, CallExemplar]] = {}
        """By bucket of the durations of the same key."""

    @property
    def keys(self) -> frozenset[str]:
        """Metadata keys that `begin` reads; an edge may leave out all others."""
        return frozenset({REQUEST_ID_KEY}) | (frozenset() if self._tracer is None else self._tracer.context_keys)

    def begin(self, method: str, metadata: Collection[tuple[str, str | bytes]]) -> NotedCall:
        """Begin a call of this full method name."""
        started = time.monotonic()
        tracer = self._tracer
        request_id = request_id_in(metadata)
        _request_id.set(request_id)
        trace = None
        if tracer is not None:
            trace = tracer.begin(method, request_id, carrier_in(metadata, tracer.context_keys))
        if trace is not None:
            bind_contextvars(trace_id=trace.trace_id, span_id=trace.span_id)
        return NotedCall(self, method, request_id, started, trace)

    def count(self, method: str, code: int, seconds: float, trace: CallTrace | None = None) -> None:
        """Count a call that has ended, and keep it as an exemplar if it may be one."""
        key = (method, code)
        durations = self.durations.get(key)
        if durations is None:
            durations = self.durations[key] = Durations()
        place = bucket(seconds)
        durations.counts[place] += 1
        durations.seconds += seconds
        if self._keeps_all or (trace is not None and self._keeps_sampled):
            ids = ("", "") if trace is None else (trace.trace_id, trace.span_id)
            self.exemplars.setdefault(key, {})[place] = CallExemplar(seconds, time.time(), *ids)


class NotedCall(Call):
    """A call that is counted, logged and, if sampled, traced."""

    __slots__ = ("_calls", "_ended", "_method", "_started", "_trace")

    def __init__(self, calls: Calls, method: str, request_id: str, started: float, trace: CallTrace | None) -> None:
        self.request_id = request_id
        self._calls = calls
        self._method = method
        self._started = started
        self._trace = trace
        self._ended = False

    def end(self, code: int) -> None:
        """Count the call with a google.rpc code. Only the first end counts."""
        if self._ended:
            return
        self._ended = True
        seconds = time.monotonic() - self._started
        self._calls.count(self._method, code, seconds, self._trace)
        self._calls.log_debug("call", method=self._method, status=_NAMES[code], seconds=seconds)
        if self._trace is not None:
            self._trace.end(code)
            unbind_contextvars("trace_id", "span_id")


def request_id_in(metadata: Collection[tuple[str, str | bytes]]) -> str:
    """Return the request id that the caller sent, or a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str):
            return request_id_of(value)
    return request_id_of(None)


def carrier_in(metadata: Collection[tuple[str, str | bytes]], keys: Collection[str]) -> dict[str, str]:
    """Return the caller's trace context: the first text of each of these keys."""
    carrier: dict[str, str] = {}
    for key, value in metadata:
        if key in keys and isinstance(value, str):
            carrier.setdefault(key, value)
    return carrier
