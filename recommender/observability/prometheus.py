"""The endpoint that Prometheus scrapes, in its text format or as OpenMetrics."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from recommender.errors import StartError
from recommender.histogram import CallExemplar
from recommender.observability.instruments import DataPoint, Distribution, Instrument, Reading

_READ_SECONDS = 5.0
"""How long a scrape waits for the event loop. Later than that the scrape fails: the lag is the news."""


class Endpoint:
    """Serves `/metrics` at `host` and `port` (0 takes a free one) in a thread of its own, until `close`.

    Each scrape asks `collector`. Raises StartError if it cannot listen.
    """

    def __init__(self, collector: Collector, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on port {port} of {host}: {error.strerror}; stop what listens there, or set "
                "RECOMMENDER_METRICS_PORT to another one (0 takes a free one, empty serves none)"
            ) from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening and wait for the thread, which answers at most one more scrape."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Readings(Collector):
    """Collects what `read` returns, called on the event loop that this is made on, from any thread."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, Reading]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        """Collect one reading; raises TimeoutError if the event loop is too late for it."""
        return families(asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(_READ_SECONDS))

    def describe(self) -> Iterable[Metric]:
        """No families: else the registry would take a reading to learn the names, on the loop it is called from."""
        return ()


def families(reading: Reading) -> Iterable[Metric]:
    """Convert a reading to families of Prometheus."""
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


def _histogram(
    family: HistogramMetricFamily, instrument: Instrument, points: Iterable[DataPoint]
) -> HistogramMetricFamily:
    ends = (*(str(float(bound)) for bound in instrument.bounds), "+Inf")
    for point in points:
        if isinstance(point.value, Distribution):
            exemplars = point.value.exemplars
            counts = enumerate(zip(ends, itertools.accumulate(point.value.counts), strict=True))
            buckets = [(*each, _exemplar(exemplars[place])) if place in exemplars else each for place, each in counts]
            family.add_metric(point.attributes, buckets, point.value.total)
    return family


def _exemplar(call: CallExemplar) -> Exemplar:
    ids = {"trace_id": call.trace_id, "span_id": call.span_id} if call.trace_id else {}
    return Exemplar(ids, call.seconds, call.at)
