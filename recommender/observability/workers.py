"""Metrics of several workers in one scrape, distinguished by the label `worker`."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_READ_SECONDS = 5.0
"""How long a scrape waits for a worker. A later one is left out and has a `recommender_worker_up` of 0."""

UP = "recommender_worker_up"
DEATHS = "recommender_worker_deaths"
"""Metrics that only the supervisor of several workers has; a scrape adds `_total` to the second."""

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class WorkerMetrics(Collector):
    """Collects the metrics of the workers.

    `ports` gives their metrics ports by number, 0 for one that is down, and `deaths` how often each died so far.
    """

    def __init__(self, ports: Callable[[], Mapping[int, int]], deaths: Callable[[], Mapping[int, int]]) -> None:
        self._ports = ports
        self._deaths = deaths

    def collect(self) -> Iterable[Metric]:
        """Scrape all workers concurrently, and add what only the supervisor knows of each."""
        ports = dict(self._ports())
        with ThreadPoolExecutor(max(len(ports), 1)) as threads:
            found = dict(zip(ports, threads.map(_read, ports.values()), strict=True))
        up = GaugeMetricFamily(UP, "Whether a worker gave its metrics.", labels=["worker"])
        died = CounterMetricFamily(DEATHS, "Workers that died and were started again.", labels=["worker"])
        for number, count in self._deaths().items():
            died.add_metric([str(number)], count)
        families: dict[str, Metric] = {}
        for number, worker in found.items():
            up.add_metric([str(number)], float(worker is not None))
            for family in worker or ():
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [_of_worker(sample, number) for sample in family.samples]
        return [up, died, *families.values()]

    def describe(self) -> Iterable[Metric]:
        """No families: else the registry would ask the workers to learn the names."""
        return ()


def _families(text: str) -> Sequence[Metric]:
    families: Iterable[Metric] = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return tuple(families)


def _of_worker(sample: Sample, number: int) -> Sample:
    return Sample(
        sample.name, {**sample.labels, "worker": str(number)}, sample.value, sample.timestamp, sample.exemplar
    )


def _read(port: int) -> Sequence[Metric] | None:
    """Scrape a worker; None if it is down, dies meanwhile, or something else answers at its former port."""
    if not port:
        return None
    try:
        # Prometheus' own text format has no exemplars.
        page = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": _OPENMETRICS})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, without any proxy
        with direct.open(page, timeout=_READ_SECONDS) as answer:
            return _families(answer.read().decode())
    except (OSError, http.client.HTTPException, ValueError):
        return None
