"""Spans of calls and of batches, for calls that are sampled; one that is not costs a draw and leaves nothing behind.

A call has a SERVER span in its caller's trace, with a child `queue` (from admission to the start of its batch) and a
child `run` (its batch) for each batch that had rows of it. A batch is a span of its own, with a link to every sampled
call in it; each `run` links to its batch. So from a slow call one gets to its batch, and from there to its company.

The stock interceptor costs a third of the throughput even where nothing is sampled: it wraps every handler
and makes a span that is thrown away. Here the sampler is asked first. Context, attributes and sampling are as there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from google.rpc import code_pb2
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, get_current_span, set_span_in_context

from recommender.batching.batches import Batch
from recommender.batching.many import Payload
from recommender.observability import instruments as telemetry

_MOST_BATCHES = 256
"""Of how many batches a call's trace tells: a stream may be in any number of them."""
_OUR_FAULT = frozenset(
    {
        code_pb2.UNKNOWN,
        code_pb2.DEADLINE_EXCEEDED,
        code_pb2.UNIMPLEMENTED,
        code_pb2.INTERNAL,
        code_pb2.UNAVAILABLE,
        code_pb2.DATA_LOSS,
    }
)
"""Statuses that make a server's span an error, by the semantic conventions; others are the caller's affair."""
_UNSAMPLED = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]")
"""A valid `traceparent` of a caller that does not sample its trace."""
_NO_PARENT = Context()
_current: ContextVar[CallTrace | None] = ContextVar("trace of the current call", default=None)

log = structlog.get_logger(__name__)


class Tracing:
    """Makes the spans of one server, and hands them to `processor`.

    What is sampled, how large a span may be and how context travels is said by the standard OTEL_* variables.
    `ratio` is what they say of calls that come without a trace: it is held against the trace id as the SDK does, first.
    """

    def __init__(self, processor: SpanProcessor, resource: Resource, *, ratio: float = 1.0) -> None:
        self._ids = _DrawnIds()
        calls = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        # A batch is worth a span if a call in it is: that was decided when the call came.
        batches = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        for provider in (calls, batches):
            provider.add_span_processor(processor)
        self._sampler = calls.sampler
        self._calls = calls.get_tracer("recommender")
        self._batches = batches.get_tracer("recommender")
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        description = self._sampler.get_description()
        self._drops_the_unsampled = "remoteParentNotSampled:AlwaysOffSampler" in description
        self.context_keys = frozenset(propagate.get_global_textmap().fields)
        """The keys of metadata that `begin` wants."""

    def begin(self, method: str, request_id: str, carrier: Mapping[str, str]) -> CallTrace | None:
        """Begin the trace of a call if it is sampled; `carrier` is what the caller sent for `context_keys`."""
        if self._drops_the_unsampled and _UNSAMPLED.fullmatch(carrier.get("traceparent", "")):
            return None  # as the sampler would say; most calls of a sampled system come so
        trace_id = self._ids.draw()
        if not carrier and trace_id & TraceIdRatioBased.TRACE_ID_LIMIT >= self._bound:
            return None
        parent = propagate.extract(carrier, _NO_PARENT) if carrier else _NO_PARENT
        caller = get_current_span(parent).get_span_context()
        trace_id = caller.trace_id if caller.is_valid else trace_id
        sampled = self._sampler.should_sample(parent, trace_id, method, SpanKind.SERVER)
        if sampled.decision is Decision.DROP:
            return None
        attributes = {
            telemetry.RPC_SYSTEM: "grpc",
            telemetry.RPC_METHOD: method,
            telemetry.REQUEST_ID: request_id,
        }
        span = self._calls.start_span(method, parent, SpanKind.SERVER, attributes)
        trace = CallTrace(self, span)
        _current.set(trace)
        return trace

    def of_model(self, name: str, version: str) -> BatchTracing:
        """What the batcher of that model tells of its batches."""
        return BatchTracing(self, {telemetry.MODEL_NAME: name, telemetry.MODEL_VERSION: version})

    def child(self, name: str, parent: Context, started: float, link: SpanContext | None = None) -> Span:
        """A span within a call that began at a monotonic time."""
        links = () if link is None else (Link(link),)
        return self._calls.start_span(name, parent, links=links, start_time=_epoch_ns(started))

    def batch(self, links: list[Link], attributes: Mapping[str, str | int], started: float) -> Span:
        """A span for a batch that began at a monotonic time."""
        return self._batches.start_span(
            telemetry.SPAN_BATCH, _NO_PARENT, attributes=attributes, links=links, start_time=_epoch_ns(started)
        )


class CallTrace:
    """The spans of one sampled call. `trace_id` and `span_id` are as W3C writes them."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self.span = span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"
        self.queued: float | None = None
        """Since when a row of it has been waiting, as long as none was in a batch."""
        self._tracing = tracing
        self._context = set_span_in_context(span, _NO_PARENT)
        self._runs: dict[int, tuple[Span, float]] = {}
        self._batches = 0

    def join(self, batch: Batch[Payload], arrived: float, about: Mapping[str, str | int], span: SpanContext) -> None:
        """Note that rows of the call are in a batch that starts; the first of them arrived then."""
        self.queued = None
        self._batches += 1
        if self._batches > _MOST_BATCHES:
            return
        self._tracing.child(telemetry.SPAN_QUEUE, self._context, arrived).end(_epoch_ns(batch.started))
        run = self._tracing.child(telemetry.SPAN_RUN, self._context, batch.started, span)
        run.set_attributes(about)
        self._runs[batch.number] = run, batch.started
        self.span.set_attributes({**about, telemetry.WAIT: batch.started - arrived})

    def leave(self, number: int, now: float) -> None:
        """Note that a batch has ended."""
        found = self._runs.pop(number, None)
        if found is not None:
            run, started = found
            run.end(_epoch_ns(now))
            self.span.set_attribute(telemetry.RUN, now - started)

    def end(self, code: int) -> None:
        """End the call's span with a google.rpc code, and whatever of it is open."""
        now = time.monotonic()
        if self.queued is not None:
            self._tracing.child(telemetry.SPAN_QUEUE, self._context, self.queued).end(_epoch_ns(now))
        for number in tuple(self._runs):
            self.leave(number, now)
        status = code_pb2.Code.Name(code)
        self.span.set_attributes({telemetry.RPC_STATUS: status, telemetry.BATCH_COUNT: self._batches})
        if code in _OUR_FAULT:
            self.span.set_attribute(telemetry.ERROR_TYPE, status)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()
        _current.set(None)


@dataclass(slots=True)
class _OpenBatch:
    span: Span
    calls: list[CallTrace]


class BatchTracing:
    """What one batcher tells of its batches. Nothing here raises: a trace is not worth a request."""

    def __init__(self, tracing: Tracing, model: Mapping[str, str]) -> None:
        self._tracing = tracing
        self._model = model
        self._open: dict[int, _OpenBatch] = {}

    def caller(self, now: float) -> CallTrace | None:
        """The trace of the call on whose behalf this runs, if it is sampled; it waits from now on."""
        trace = _current.get()
        if trace is not None and trace.queued is None:
            trace.queued = now
        return trace

    def started(self, batch: Batch[Payload]) -> None:
        """Begin the span of a batch if a call in it is sampled."""
        arrived: dict[CallTrace, float] = {}
        for waiter in batch.waiters:
            if isinstance(waiter.trace, CallTrace):
                arrived.setdefault(waiter.trace, waiter.arrived)  # the oldest comes first
        if arrived:
            try:
                self._begin(batch, arrived)
            except Exception:
                log.exception("a batch is not traced")

    def ended(self, batch: Batch[Payload], now: float, *, failed: bool) -> None:
        """End the span of a batch; if it failed, what was tried again is in it."""
        opened = self._open.pop(batch.number, None)
        if opened is None:
            return
        try:
            for call in opened.calls:
                call.leave(batch.number, now)
            opened.span.set_attribute(telemetry.RUN, now - batch.started)
            if failed:
                opened.span.set_status(StatusCode.ERROR, "the run failed: the batch was halved and tried again")
            opened.span.end(_epoch_ns(now))
        except Exception:
            log.exception("a batch is not traced")

    def _begin(self, batch: Batch[Payload], arrived: Mapping[CallTrace, float]) -> None:
        about: dict[str, str | int] = {
            **self._model,
            telemetry.BATCH_ID: batch.number,
            telemetry.BATCH_SIZE: len(batch.queries),
        }
        whole: dict[str, str | int] = {
            **about,
            telemetry.BATCH_CALLERS: len(batch.waiters),
            telemetry.BATCH_CELLS: batch.cells,
            telemetry.CLOSE_REASON: batch.closed.value,
        }
        links = [Link(call.span.get_span_context()) for call in arrived]
        span = self._tracing.batch(links, whole, batch.started)
        self._open[batch.number] = _OpenBatch(span, list(arrived))
        for call, since in arrived.items():
            call.join(batch, since, about, span.get_span_context())


class _DrawnIds(RandomIdGenerator):
    """Trace ids that are drawn before the SDK asks for them, so that the sampler can be asked before the SDK is."""

    def __init__(self) -> None:
        self._drawn: int | None = None

    def draw(self) -> int:
        """The trace id that the next root span gets."""
        self._drawn = super().generate_trace_id()
        return self._drawn

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self._drawn is None else self._drawn


def _epoch_ns(monotonic: float) -> int:
    """A time of the batcher's clock as OpenTelemetry wants it."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
