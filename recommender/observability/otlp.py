"""Spans and metrics to an OpenTelemetry collector over gRPC. A failing collector never harms the service.

The SDK reads endpoint, credentials and queue sizes from the standard OTEL_* variables. What cannot be delivered is
dropped, with one warning when delivery fails and one line when it works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

import structlog
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from recommender.observability.instruments import DataPoint, Distribution, Instrument, Reading
from recommender.observability.metrics import Metrics

_LAST_SECONDS = 2.0
"""Time to deliver what is left when the server stops."""

log = structlog.get_logger(__name__)


def make_resource() -> Resource:
    """Describe this service; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our values."""
    ours = {
        "service.name": "recommender",
        "service.version": version("recommender"),
        "service.instance.id": str(uuid.uuid4()),
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


class Delivery:
    """Logs when delivery starts to fail and when it works again, not each attempt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing = False

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._failing

    def note(self, *, delivered: bool, signal: str) -> None:
        """Record an attempt. Thread-safe."""
        with self._lock:
            changed, self._failing = self._failing is delivered, not delivered
        if changed and delivered:
            log.info("telemetry is delivered again", signal=signal)
        elif changed:
            log.warning("telemetry cannot be delivered: it is dropped until it can", signal=signal)


class SpanSender:
    """Sends spans in batches from a thread of its own; a full `processor` drops spans."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._exporter = _NotingExporter(OTLPSpanExporter(), delivery)
        self.processor = BatchSpanProcessor(self._exporter)

    async def close(self) -> None:
        """Send what is left within two seconds, and end the thread."""
        if not self._delivery.failing:
            await _briefly(self.processor.force_flush)
        self._exporter.shutdown()  # ends an attempt in progress
        await asyncio.to_thread(self.processor.shutdown)


class MetricSender:
    """Sends a reading every `interval` seconds."""

    def __init__(self, metrics: Metrics, resource: Resource, delivery: Delivery, *, interval: float) -> None:
        self._metrics = metrics
        self._resource = resource
        self._delivery = delivery
        self._interval = interval
        self._exporter = OTLPMetricExporter()
        self._started = time.time_ns()

    async def run(self) -> None:
        """Send until cancelled; an attempt that takes longer than the interval delays the next."""
        while True:
            await asyncio.sleep(self._interval)
            await asyncio.to_thread(self._send, await self._metrics.read())

    async def close(self) -> None:
        """Send the last values within two seconds; call it after `run` is cancelled."""
        if not self._delivery.failing:
            reading = await self._metrics.read()
            await _briefly(lambda: self._send(reading))
        self._exporter.shutdown()

    def _send(self, reading: Reading) -> None:
        delivered = False
        try:
            data = metrics_data(reading, self._resource, self._started, time.time_ns())
            delivered = self._exporter.export(data) is MetricExportResult.SUCCESS
        except ValueError:  # `close` shut the channel meanwhile
            return
        except Exception:  # a bug here must end neither the sending nor a shutdown
            log.exception("metrics could not be sent")
        self._delivery.note(delivered=delivered, signal="metrics")


class _NotingExporter(SpanExporter):
    def __init__(self, exporter: SpanExporter, delivery: Delivery) -> None:
        self._exporter = exporter
        self._delivery = delivery
        self._open = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if self._open:
                self._delivery.note(delivered=result is SpanExportResult.SUCCESS, signal="traces")
        return result

    def shutdown(self) -> None:
        if self._open:
            self._open = False
            self._exporter.shutdown()


async def _briefly(work: Callable[[], object]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(work), _LAST_SECONDS)


def pass_on_warnings() -> None:
    """Route warnings of the SDK to our log, except those about delivery, which Delivery logs."""
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers = [_OurLog(logging.WARNING)]
    sdk.propagate = False
    for name in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
        told = logging.getLogger(name)
        told.handlers = [logging.NullHandler()]
        told.propagate = False


class _OurLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.warning("opentelemetry", message=record.getMessage())


def metrics_data(reading: Reading, resource: Resource, since: int, now: int) -> MetricsData:
    """Convert a reading to OpenTelemetry's model, cumulative from `since` to `now` in nanoseconds since the epoch."""
    metrics = [
        Metric(instrument.name, instrument.meaning, instrument.unit, _data(instrument, points, since, now))
        for instrument, points in reading
        if points
    ]
    scope = ScopeMetrics(InstrumentationScope("recommender", version("recommender")), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _data(instrument: Instrument, points: Iterable[DataPoint], since: int, now: int) -> Sum | Gauge | Histogram:
    cumulative = AggregationTemporality.CUMULATIVE
    numbers: list[NumberDataPoint] = []
    distributions: list[HistogramDataPoint] = []
    for point in points:
        attributes = dict(zip(instrument.attributes, point.attributes, strict=True))
        value = point.value
        if isinstance(value, Distribution):
            none: float = None  # type: ignore[assignment]  # minimum and maximum are optional in the protocol
            distributions.append(
                HistogramDataPoint(
                    attributes, since, now, sum(value.counts), value.total, value.counts, instrument.bounds, none, none
                )
            )
        else:
            numbers.append(NumberDataPoint(attributes, since, now, value))
    if instrument.kind == "histogram":
        return Histogram(distributions, cumulative)
    if instrument.kind == "gauge":
        return Gauge(numbers)
    return Sum(numbers, cumulative, is_monotonic=instrument.kind == "counter")
