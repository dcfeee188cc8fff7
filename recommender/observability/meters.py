"""Readings as metrics of the OpenTelemetry SDK, sent to a collector.

Counters and gauges are the SDK's observable instruments, which a reading feeds; so temporality and start times are the
SDK's. It has no instrument for a histogram that is counted elsewhere: those are added to what the SDK has collected,
as the temporality and the aggregation that its exporter prefers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Exemplar, MeterProvider
from opentelemetry.sdk.metrics import Histogram as HistogramKind
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource

from recommender.histogram import CallExemplar
from recommender.observability.delivery import Attempts, Delivery, flush_and_end, in_daemon, take_reasons
from recommender.observability.instruments import INSTRUMENTS, DataPoint, Distribution, Instrument
from recommender.observability.metrics import Metrics
from recommender.observability.otlp import metric_exporter
from recommender.observability.totals import Totals
from recommender.settings.otlp import Protocol

_SCALE = 3
"""Of exponential histograms: bucket bounds are powers of 2 ** (1 / 8), closer to each other than ours."""

_NONE: float = None  # type: ignore[assignment]
"""Minimum and maximum, which are optional in the protocol."""

Observe: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]


class MetricSender:
    """Sends a reading of `metrics` every `interval` seconds."""

    def __init__(
        self, metrics: Metrics, resource: Resource, protocol: Protocol, delivery: Delivery, *, interval: float
    ) -> None:
        self._metrics = metrics
        self._totals = Totals()
        self._interval = interval
        exporter = metric_exporter(protocol)
        take_reasons(exporter)
        self._attempts = Attempts("metrics", protocol, delivery)
        self._exporter = _WithHistograms(exporter, self._attempts)
        # The interval is kept on the event loop, where readings are taken.
        self._reader = PeriodicExportingMetricReader(self._exporter, export_interval_millis=math.inf)
        provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        meter = provider.get_meter("recommender", version("recommender"))
        make: Mapping[str, Callable[[str, list[Observe], str, str], object]] = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }
        self._observed: dict[Instrument, list[Observation]] = {}
        for each in INSTRUMENTS:
            if each.kind != "histogram":
                make[each.kind](each.name, [self._observations(each)], each.unit, each.meaning)

    async def run(self) -> None:
        """Send until cancelled; an attempt that takes longer than the interval delays the next."""
        while True:
            await asyncio.sleep(self._interval)
            await self._read()
            await in_daemon(self._reader.collect)

    async def close(self) -> None:
        """Send the last values within two seconds; call it after `run` is cancelled."""
        await self._read()
        await flush_and_end(
            self._reader.collect, self._exporter.shutdown, lambda: None, deliverable=not self._attempts.failing
        )

    async def _read(self) -> None:
        reading = self._totals.of(await self._metrics.read())
        self._observed = {
            instrument: [
                Observation(point.value, _attributes(instrument, point))
                for point in points
                if not isinstance(point.value, Distribution)
            ]
            for instrument, points in reading
        }
        self._exporter.histograms = {
            instrument: points for instrument, points in reading if instrument.kind == "histogram"
        }

    def _observations(self, instrument: Instrument) -> Observe:
        return lambda _: self._observed.get(instrument, ())


class _WithHistograms(MetricExporter):
    """Exports what the SDK has collected by `exporter`, with `histograms` added."""

    def __init__(self, exporter: MetricExporter, attempts: Attempts) -> None:
        # The SDK's reader asks its exporter in the same way.
        temporality, aggregation = exporter._preferred_temporality, exporter._preferred_aggregation  # noqa: SLF001
        super().__init__(temporality, aggregation)
        self.histograms: Mapping[Instrument, list[DataPoint]] = {}
        self._exporter = exporter
        self._attempts = attempts
        self._temporality = (temporality or {}).get(HistogramKind, AggregationTemporality.CUMULATIVE)
        self._exponential = isinstance((aggregation or {}).get(HistogramKind), ExponentialBucketHistogramAggregation)
        self._started = self._last = time.time_ns()
        self._sent: dict[tuple[Instrument, tuple[str, ...]], Distribution] = {}

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_kwargs: object
    ) -> MetricExportResult:
        """Export and note how that went."""
        now = time.time_ns()
        added = [self._metric(instrument, points, now) for instrument, points in self.histograms.items() if points]
        self._last = now
        resource = metrics_data.resource_metrics[0]
        scope = resource.scope_metrics[0]
        scopes = [replace(scope, metrics=[*scope.metrics, *added]), *resource.scope_metrics[1:]]
        whole = MetricsData([replace(resource, scope_metrics=scopes), *metrics_data.resource_metrics[1:]])
        return self._attempts.make(lambda: self._exporter.export(whole, timeout_millis), MetricExportResult.SUCCESS)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:  # noqa: ARG002 (the SDK's signature)
        """Nothing is held back."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_kwargs: object) -> None:
        """End an attempt in progress; a second call is a no-op."""
        if self._attempts.end():
            self._exporter.shutdown(timeout_millis)

    def _metric(self, instrument: Instrument, points: Iterable[DataPoint], now: int) -> Metric:
        data: Histogram | ExponentialHistogram
        found = list(self._distributions(instrument, points))
        if self._exponential:
            since = self._since
            data = ExponentialHistogram(
                [_exponential(instrument, at, each, since, now) for at, each in found], self._temporality
            )
        else:
            data = Histogram(
                [_explicit(instrument, at, each, self._since, now) for at, each in found], self._temporality
            )
        return Metric(instrument.name, instrument.meaning, instrument.unit, data)

    @property
    def _since(self) -> int:
        return self._last if self._temporality is AggregationTemporality.DELTA else self._started

    def _distributions(
        self, instrument: Instrument, points: Iterable[DataPoint]
    ) -> Iterable[tuple[DataPoint, Distribution]]:
        """The values of each point to send: all or, as a delta, those since the last time; with new exemplars."""
        for point in points:
            if isinstance(point.value, Distribution):
                whole = point.value
                exemplars = {place: each for place, each in whole.exemplars.items() if each.at * 1e9 >= self._last}
                sent = replace(whole, exemplars=exemplars)
                if self._temporality is AggregationTemporality.DELTA:
                    before = self._sent.get((instrument, point.attributes))
                    self._sent[instrument, point.attributes] = whole
                    sent = sent if before is None else _grown(before, sent)
                yield point, sent


def _grown(before: Distribution, now: Distribution) -> Distribution:
    counts = tuple(after - earlier for after, earlier in zip(now.counts, before.counts, strict=True))
    return replace(now, counts=counts, total=now.total - before.total)


def _attributes(instrument: Instrument, point: DataPoint) -> dict[str, str]:
    return dict(zip(instrument.attributes, point.attributes, strict=True))


def _explicit(instrument: Instrument, point: DataPoint, sent: Distribution, since: int, now: int) -> HistogramDataPoint:
    return HistogramDataPoint(
        _attributes(instrument, point),
        since,
        now,
        sum(sent.counts),
        sent.total,
        sent.counts,
        instrument.bounds,
        _NONE,
        _NONE,
        [_exemplar(each) for each in sent.exemplars.values()],
    )


def _exponential(
    instrument: Instrument, point: DataPoint, sent: Distribution, since: int, now: int
) -> ExponentialHistogramDataPoint:
    """Count every value at the upper bound of its bucket; those above the last bound just above it."""
    counts: dict[int, int] = {}
    for bound, count in zip((*instrument.bounds, math.inf), sent.counts, strict=True):
        if count:
            last = math.isinf(bound)
            place = _place(instrument.bounds[-1]) + 1 if last else _place(bound)
            counts[place] = counts.get(place, 0) + count
    low = min(counts, default=0)
    dense = [counts.get(place, 0) for place in range(low, max(counts, default=-1) + 1)]
    return ExponentialHistogramDataPoint(
        _attributes(instrument, point),
        since,
        now,
        sum(sent.counts),
        sent.total,
        _SCALE,
        0,
        Buckets(low, dense),
        Buckets(0, []),
        0,
        _NONE,
        _NONE,
        [_exemplar(each) for each in sent.exemplars.values()],
    )


def _place(value: float) -> int:
    """The index of the exponential bucket with the least upper bound that is not below the value."""
    return math.ceil(math.log2(value) * (1 << _SCALE)) - 1


def _exemplar(call: CallExemplar) -> Exemplar:
    trace_id = int(call.trace_id, 16) if call.trace_id else None
    span_id = int(call.span_id, 16) if call.span_id else None
    return Exemplar({}, call.seconds, int(call.at * 1e9), span_id, trace_id)
