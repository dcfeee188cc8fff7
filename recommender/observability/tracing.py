"""Spans of sampled calls and of their batches.

A call has a SERVER span in its caller's trace: of gRPC's stock interceptor on the grpc.aio edge, of our own behind
Envoy. For each batch with rows of it, the span has a child `queue` (admission to start of the batch) and a child `run`
(the batch). A batch is a separate span with links to every sampled call in it; each `run` links to its batch. Links
lead from a slow call to its batch, and on to the other calls in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from google.rpc import code_pb2
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, get_current_span, set_span_in_context

from recommender.batching.batches import Batch
from recommender.batching.many import Payload
from recommender.observability import instruments
from recommender.observability.sampling import Sampling

_MOST_BATCHES = 256
"""Limit of batches in one call's trace: a stream may be in any number."""
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
"""Statuses that make a server's span an error by the semantic conventions; others are the caller's errors."""
_NO_PARENT = Context()
_current: ContextVar[CallSpans | None] = ContextVar("trace of the current call", default=None)

log = structlog.get_logger(__name__)


class Tracing:
    """Makes the spans of one server and passes them to `processor`.

    If `intercepted`, an interceptor makes the calls' own spans with `sampling.provider`, and `begin` uses the current
    span. Otherwise it samples, and starts a span.
    """

    def __init__(
        self, processor: SpanProcessor, resource: Resource, *, ratio: float = 1.0, intercepted: bool = False
    ) -> None:
        self.sampling = Sampling(resource, ratio)
        # A batch has a span if a call in it is sampled, which was decided when the call arrived.
        batches = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        for provider in (self.sampling.provider, batches):
            provider.add_span_processor(processor)
        self._calls = self.sampling.provider.get_tracer("recommender")
        self._batches = batches.get_tracer("recommender")
        self._intercepted = intercepted
        self.context_keys = frozenset() if intercepted else self.sampling.context_keys
        """Metadata keys that `begin` reads."""

    def begin(self, method: str, request_id: str, carrier: Mapping[str, str]) -> CallSpans | None:
        """Begin the trace of a call; None if it is not sampled. `carrier` has the caller's values of `context_keys`."""
        if self._intercepted:
            span = get_current_span()
            if not span.is_recording():
                return None
        else:
            parent = self.sampling.parent(method, carrier)
            if parent is None:
                return None
            span = self._calls.start_span(method, parent, SpanKind.SERVER)
        attributes = {
            instruments.RPC_SYSTEM: "grpc",
            instruments.RPC_METHOD: method,
            instruments.REQUEST_ID: request_id,
        }
        span.set_attributes(attributes)
        trace = CallSpans(self, span, ends=not self._intercepted)
        _current.set(trace)
        return trace

    def of_model(self, name: str, version: str) -> BatchTracing:
        """Tracer for the batcher of that model."""
        return BatchTracing(self, {instruments.MODEL_NAME: name, instruments.MODEL_VERSION: version})

    def child(self, name: str, parent: Context, started: float, link: SpanContext | None = None) -> Span:
        """Start a span within a call at a monotonic time."""
        links = () if link is None else (Link(link),)
        return self._calls.start_span(name, parent, links=links, start_time=_epoch_ns(started))

    def batch(self, links: list[Link], attributes: Mapping[str, str | int], started: float) -> Span:
        """Start a span of a batch at a monotonic time."""
        return self._batches.start_span(
            instruments.SPAN_BATCH, _NO_PARENT, attributes=attributes, links=links, start_time=_epoch_ns(started)
        )


class CallSpans:
    """The spans of one sampled call. `trace_id` and `span_id` are hexadecimal, as in `traceparent`.

    `ends` says whether `end` ends the call's own span, or an interceptor does.
    """

    def __init__(self, tracing: Tracing, span: Span, *, ends: bool) -> None:
        self.span = span
        self._ends = ends
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"
        self.queued: float | None = None
        """When its oldest waiting row was queued; None once a row is in a batch."""
        self._tracing = tracing
        self._context = set_span_in_context(span, _NO_PARENT)
        self._runs: dict[int, tuple[Span, float]] = {}
        self._batches = 0

    def join(self, batch: Batch[Payload], arrived: float, about: Mapping[str, str | int], span: SpanContext) -> None:
        """Note that rows of the call are in a batch that starts; the first of them was queued at `arrived`."""
        self.queued = None
        self._batches += 1
        if self._batches > _MOST_BATCHES:
            return
        self._tracing.child(instruments.SPAN_QUEUE, self._context, arrived).end(_epoch_ns(batch.started))
        run = self._tracing.child(instruments.SPAN_RUN, self._context, batch.started, span)
        run.set_attributes(about)
        self._runs[batch.number] = run, batch.started
        self.span.set_attributes({**about, instruments.WAIT: batch.started - arrived})

    def leave(self, number: int, now: float) -> None:
        """Note that a batch has ended."""
        found = self._runs.pop(number, None)
        if found is not None:
            run, started = found
            run.end(_epoch_ns(now))
            self.span.set_attribute(instruments.RUN, now - started)

    def end(self, code: int) -> None:
        """End the call's span with a google.rpc code, and its open children."""
        now = time.monotonic()
        if self.queued is not None:
            self._tracing.child(instruments.SPAN_QUEUE, self._context, self.queued).end(_epoch_ns(now))
        for number in tuple(self._runs):
            self.leave(number, now)
        status = code_pb2.Code.Name(code)
        self.span.set_attributes({instruments.RPC_STATUS: status, instruments.BATCH_COUNT: self._batches})
        if code in _OUR_FAULT:
            self.span.set_attribute(instruments.ERROR_TYPE, status)
            self.span.set_status(StatusCode.ERROR)
        if self._ends:
            self.span.end()
        else:
            self.span.set_attribute(instruments.RPC_STATUS_NUMBER, code)  # the interceptor knows of no cancellation
        _current.set(None)


@dataclass(slots=True)
class _OpenBatch:
    span: Span
    calls: list[CallSpans]


class BatchTracing:
    """Traces the batches of one batcher. Nothing here raises: a trace must not cost a request."""

    def __init__(self, tracing: Tracing, model: Mapping[str, str]) -> None:
        self._tracing = tracing
        self._model = model
        self._open: dict[int, _OpenBatch] = {}

    def caller(self, now: float) -> CallSpans | None:
        """Return the spans of the current call, queued from now on; None if it is not sampled."""
        trace = _current.get()
        if trace is not None and trace.queued is None:
            trace.queued = now
        return trace

    def started(self, batch: Batch[Payload]) -> None:
        """Begin the span of a batch if a call in it is sampled."""
        arrived: dict[CallSpans, float] = {}
        for waiter in batch.waiters:
            if isinstance(waiter.trace, CallSpans):
                arrived.setdefault(waiter.trace, waiter.arrived)  # the oldest first
        if arrived:
            try:
                self._begin(batch, arrived)
            except Exception:
                log.exception("a batch is not traced")

    def ended(self, batch: Batch[Payload], now: float, *, failed: bool) -> None:
        """End the span of a batch; the span of a failed one includes its second tries."""
        opened = self._open.pop(batch.number, None)
        if opened is None:
            return
        try:
            for call in opened.calls:
                call.leave(batch.number, now)
            opened.span.set_attribute(instruments.RUN, now - batch.started)
            if failed:
                opened.span.set_status(StatusCode.ERROR, "the run failed: the batch was halved and tried again")
            opened.span.end(_epoch_ns(now))
        except Exception:
            log.exception("a batch is not traced")

    def _begin(self, batch: Batch[Payload], arrived: Mapping[CallSpans, float]) -> None:
        about: dict[str, str | int] = {
            **self._model,
            instruments.BATCH_ID: batch.number,
            instruments.BATCH_SIZE: len(batch.queries),
        }
        whole: dict[str, str | int] = {
            **about,
            instruments.BATCH_CALLERS: len(batch.waiters),
            instruments.BATCH_CELLS: batch.cells,
            instruments.CLOSE_REASON: batch.closed.value,
        }
        links = [Link(call.span.get_span_context()) for call in arrived]
        span = self._tracing.batch(links, whole, batch.started)
        self._open[batch.number] = _OpenBatch(span, list(arrived))
        for call, since in arrived.items():
            call.join(batch, since, about, span.get_span_context())


def _epoch_ns(monotonic: float) -> int:
    """Convert monotonic seconds to nanoseconds since the epoch."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
