"""Spans of gRPC's stock client interceptors, under the names of the stable semantic conventions as well.

The interceptors call no hook for a failed call of a synchronous channel, nor for a stream. So the spans themselves add
the stable names to the interceptor's older ones.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from google.rpc import code_pb2
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, TracerProvider, use_span
from opentelemetry.util.types import AnyValue, Attributes

from recommender.observability import instruments

_SERVICE = "rpc.service"
"""The interceptor's older name."""


class StableNames(TracerProvider):
    """Creates tracers of `provider` whose spans also have the stable names."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """Get a tracer, as the API has it."""
        return _StableTracer(
            self._provider.get_tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        )


class _StableTracer(Tracer):
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002 (the API's signature)
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002
    ) -> Span:
        named = dict(attributes or {})
        named |= {
            instruments.RPC_SYSTEM: "grpc",
            instruments.RPC_METHOD: f"{named.get(_SERVICE, '')}/{named.get(instruments.RPC_METHOD, '')}",
        }
        return _StableSpan(
            self._tracer.start_span(
                name, context, kind, named, links, start_time, record_exception, set_status_on_exception
            )
        )

    @contextmanager
    def start_as_current_span(  # type: ignore[override] # the API's own decorator is private
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002 (the API's signature)
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002
        end_on_exit: bool = True,  # noqa: FBT001, FBT002
    ) -> Iterator[Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with use_span(span, end_on_exit, record_exception, set_status_on_exception):
            try:
                yield span
            except asyncio.CancelledError:
                span.end()  # which the interceptor forgets
                raise


class _StableSpan(Span):
    """A span of one attempt of a call. Its status is OK unless the interceptor says otherwise, or it is cancelled."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._code: int = code_pb2.OK
        self._outside = sys.exception()
        self._ended = False

    def end(self, end_time: int | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        left = sys.exception()
        if left is not self._outside and isinstance(left, asyncio.CancelledError | GeneratorExit):
            self.set_attribute(instruments.RPC_STATUS_NUMBER, code_pb2.CANCELLED)
            self._span.set_status(StatusCode.ERROR)
        status = code_pb2.Code.Name(self._code)
        self._span.set_attribute(instruments.RPC_STATUS, status)
        if self._code != code_pb2.OK:
            self._span.set_attribute(instruments.ERROR_TYPE, status)
        self._span.end(end_time)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        if key == instruments.RPC_STATUS_NUMBER and isinstance(value, int):
            self._code = value
        self._span.set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def get_span_context(self) -> SpanContext:
        return self._span.get_span_context()

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self._span.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._span.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._span.update_name(name)

    def is_recording(self) -> bool:
        return self._span.is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._span.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 (the API's signature)
    ) -> None:
        self._span.record_exception(exception, attributes, timestamp, escaped)
