"""What is kept of a call, whatever transport it came by: its id, how long it took, how it ended.

An edge calls `begin` when a call arrives and `end` on what that gives when its status is known, once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog
from google.rpc import code_pb2
from structlog.contextvars import bind_contextvars, unbind_contextvars

from recommender.api.metadata import REQUEST_ID_KEY, request_id_of
from recommender.histogram import Durations, bucket

_NAMES = {number: name for name, number in code_pb2.Code.items()}


class CallTrace(Protocol):
    """The trace of a call that is sampled."""

    trace_id: str
    span_id: str

    def end(self, code: int) -> None:
        """End it with a google.rpc code."""


class CallTracer(Protocol):
    """Who decides which calls are sampled."""

    context_keys: frozenset[str]
    """The keys of metadata by which a caller says what trace it is in."""

    def begin(self, method: str, request_id: str, carrier: Mapping[str, str]) -> CallTrace | None:
        """Begin the trace of a call; None if it is not sampled."""


class Calls:
    """The calls of one server. `durations` has those that have ended, by method and google.rpc code."""

    def __init__(self, tracer: CallTracer | None = None) -> None:
        self._tracer = tracer
        # Bound once: a logger that is looked up in each call costs more than all the rest of this.
        self.log_debug = structlog.get_logger(__name__).bind().debug
        self.durations: dict[tuple[str, int], Durations] = {}

    @property
    def keys(self) -> frozenset[str]:
        """The keys of metadata that `begin` reads: an edge need not hand it others."""
        return frozenset({REQUEST_ID_KEY}) | (frozenset() if self._tracer is None else self._tracer.context_keys)

    def begin(self, method: str, metadata: Collection[tuple[str, str | bytes]]) -> Call:
        """Take up a call: `method` is its full name, `metadata` what the caller sent with it."""
        started = time.monotonic()
        tracer = self._tracer
        sent = None
        for key, value in metadata:
            if key == REQUEST_ID_KEY and isinstance(value, str):
                sent = value
                break
        request_id = request_id_of(sent)
        # Every line that is logged on behalf of this call, by whatever module, then says which call it is.
        bind_contextvars(request_id=request_id)
        trace = None
        if tracer is not None:
            carrier: dict[str, str] = {}
            for key, value in metadata:
                if key in tracer.context_keys and isinstance(value, str):
                    carrier.setdefault(key, value)
            trace = tracer.begin(method, request_id, carrier)
        if trace is not None:
            bind_contextvars(trace_id=trace.trace_id, span_id=trace.span_id)
        return Call(self, method, request_id, started, trace)

    def count(self, method: str, code: int, seconds: float) -> None:
        """Count a call that has ended."""
        key = (method, code)
        durations = self.durations.get(key)
        if durations is None:
            durations = self.durations[key] = Durations()
        durations.counts[bucket(seconds)] += 1
        durations.seconds += seconds


@dataclass(slots=True)
class Call:
    """One call under way."""

    calls: Calls
    method: str
    request_id: str
    started: float
    trace: CallTrace | None

    def end(self, code: int) -> None:
        """Note that the call ends now, with a google.rpc code."""
        seconds = time.monotonic() - self.started
        self.calls.count(self.method, code, seconds)
        self.calls.log_debug("call", method=self.method, status=_NAMES[code], seconds=seconds)
        if self.trace is not None:
            self.trace.end(code)
            unbind_contextvars("trace_id", "span_id")
