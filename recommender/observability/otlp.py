"""Spans, metrics and log records to an OpenTelemetry collector, by the SDK's exporters.

The SDK reads endpoint, credentials and queue sizes from the standard OTEL_* variables.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from recommender.observability.delivery import Attempts, Delivery, NotedSpans, flush_and_end, take_reasons
from recommender.settings.otlp import Protocol, Signal, in_force

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.grpc.exporter import Compression  # type: ignore[attr-defined]


def make_resource(worker: int | None = None) -> Resource:
    """Describe this service; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our values.

    The number of one of several workers is part of `service.instance.id` in any case: counters under one identity may
    not come from two processes.
    """
    about = {
        "service.name": "recommender",
        "service.version": version("recommender"),
        "service.instance.id": str(uuid.uuid4()),
        **OTELResourceDetector().detect().attributes,
    }
    if worker is not None:
        about["service.instance.id"] = f"{about['service.instance.id']}-{worker}"
    return Resource.create(about)


def span_exporter(protocol: Protocol) -> SpanExporter:
    """Make the SDK's exporter of spans; raises what it raises on a variable."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc  # noqa: PLC0415 (imports gRPC)

        return grpc.OTLPSpanExporter(compression=_uncompressed("traces"))
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http  # noqa: PLC0415 (imports requests)

    return http.OTLPSpanExporter()


def metric_exporter(protocol: Protocol) -> MetricExporter:
    """Make the SDK's exporter of metrics; raises what it raises on a variable."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc  # noqa: PLC0415 (imports gRPC)

        return grpc.OTLPMetricExporter(compression=_uncompressed("metrics"))
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http  # noqa: PLC0415 (imports requests)

    return http.OTLPMetricExporter()


def record_exporter(protocol: Protocol) -> LogRecordExporter:
    """Make the SDK's exporter of log records; raises what it raises on a variable."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc  # noqa: PLC0415 (imports gRPC)

        return grpc.OTLPLogExporter(compression=_uncompressed("logs"))
    from opentelemetry.exporter.otlp.proto.http import _log_exporter as http  # noqa: PLC0415 (imports requests)

    return http.OTLPLogExporter()


class SpanSender:
    """Sends spans in batches from a separate thread; a full `processor` drops spans."""

    def __init__(self, protocol: Protocol, delivery: Delivery) -> None:
        exporter = span_exporter(protocol)
        take_reasons(exporter)
        self._attempts = Attempts("traces", protocol, delivery)
        self._exporter = NotedSpans(exporter, self._attempts)
        self.processor = BatchSpanProcessor(self._exporter)

    async def close(self) -> None:
        """Send what is left within two seconds, and end the thread."""
        await flush_and_end(
            self.processor.force_flush,
            self._exporter.shutdown,
            self.processor.shutdown,
            deliverable=not self._attempts.failing,
        )


@contextmanager
def tracing_a_command(name: str, protocol: Protocol) -> Iterator[str]:
    """Set the process's tracer provider, and yield the hexadecimal id of the trace that has all spans meanwhile.

    Spans are sent at the end; the SDK writes to standard error what it cannot deliver.
    """
    about = {"service.name": name.replace(" ", "-"), **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(span_exporter(protocol)))
    trace.set_tracer_provider(provider)
    try:
        with trace.get_tracer("recommender").start_as_current_span(name) as span:
            yield f"{span.get_span_context().trace_id:032x}"
    finally:
        provider.shutdown()


def _uncompressed(signal: Signal) -> Compression | None:
    """Say `none` in the exporter's own way, since its variables do not know it; None leaves it to them."""
    from opentelemetry.exporter.otlp.proto.grpc.exporter import (  # type: ignore[attr-defined] # noqa: PLC0415 (imports gRPC)
        Compression,
    )

    return Compression.NoCompression if in_force(signal, "COMPRESSION").lower() == "none" else None
