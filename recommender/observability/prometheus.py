"""A reading as the families of series that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from recommender.observability.instruments import Instrument
from recommender.observability.metrics import Distribution, Metrics, Point, Reading

_READ_SECONDS = 5.0
"""How long a scrape waits for the event loop; a loop that is later than that is the news, and the scrape fails."""


class Readings(Collector):
    """What `metrics` reads, taken on the event loop that this is made on, whatever thread asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        """A reading's; raises TimeoutError if the event loop is too late for it."""
        return families(asyncio.run_coroutine_threadsafe(self._metrics.read(), self._loop).result(_READ_SECONDS))

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the registry would take a reading to learn the names, on the loop it is called from."""
        return ()


def families(reading: Reading) -> Iterable[Metric]:
    """A reading in the words of Prometheus."""
    for instrument, points in reading:
        named = (instrument.prometheus_name, f"{instrument.meaning}.")
        labels = [attribute.replace(".", "_") for attribute in instrument.attributes]
        if instrument.kind == "histogram":
            yield _histogram(HistogramMetricFamily(*named, labels=labels), instrument, points)
            continue
        family = (CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily)(*named, labels=labels)
        for point in points:
            if not isinstance(point.value, Distribution):
                family.add_metric(point.attributes, point.value)
        yield family


def _histogram(family: HistogramMetricFamily, instrument: Instrument, points: Iterable[Point]) -> HistogramMetricFamily:
    ends = (*(str(float(bound)) for bound in instrument.bounds), "+Inf")
    for point in points:
        if isinstance(point.value, Distribution):
            buckets = list(zip(ends, itertools.accumulate(point.value.counts), strict=True))
            family.add_metric(point.attributes, buckets, point.value.total)
    return family
