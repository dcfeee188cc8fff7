"""Reading the metrics endpoint of a running server, and comparing two readings."""

from __future__ import annotations

import http.client
import itertools
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from recommender.edges.address import is_this_machine
from recommender.observability.instruments import MODEL_INFO, UPTIME, Instrument

_PATIENCE = 5.0
"""Seconds that a server has to answer."""

Labels: TypeAlias = tuple[tuple[str, str], ...]


class NoMetricsError(Exception):
    """No recommender server with a loaded model at the address; the message says what to do."""


@dataclass(frozen=True)
class Scrape:
    """The samples of a scrape by name and labels; `at` is when it was taken, in monotonic seconds."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def sum(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name that have these labels; 0 without any."""
        return sum(value for has, value in self.samples.get(name, {}).items() if labels.items() <= dict(has).items())


def scrape(url: str) -> Scrape:
    """Read the metrics at a URL. Blocks for a few seconds at most. Raises NoMetricsError."""
    advice = "start the server with RECOMMENDER_METRICS_PORT=9464, or say where its metrics are with --url"
    try:
        with _opener_for(url).open(url, timeout=_PATIENCE) as answer:
            text = answer.read().decode()
    except http.client.HTTPException as error:
        raise NoMetricsError(f"{url} answers, but not with metrics; {advice}") from error
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise NoMetricsError(f"no metrics at {url}: {reason}; {advice}") from error
    return parse(text, time.monotonic(), url)


def _opener_for(url: str) -> urllib.request.OpenerDirector:
    """Return an opener that asks this machine directly, and others through the proxies of the environment."""
    proxies: dict[str, str] | None = {} if is_this_machine(url) else None
    return urllib.request.build_opener(urllib.request.ProxyHandler(proxies))


def parse(text: str, at: float, url: str = "the address") -> Scrape:
    """Parse the text format of Prometheus. Raises NoMetricsError if it is not from a recommender server."""
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    except ValueError as error:
        raise NoMetricsError(f"{url} answers, but not with metrics") from error
    if UPTIME.prometheus_name not in samples or MODEL_INFO.prometheus_name not in samples:
        raise NoMetricsError(f"{url} has metrics, but not those of a recommender server with a loaded model")
    return Scrape(at, samples)


class Change:
    """The difference between two scrapes of one server."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self._before = before
        self._after = after
        self.seconds = max(after.at - before.at, 1e-9)

    def now(self, instrument: Instrument, **labels: str) -> float:
        """Latest value of a gauge, summed over its series."""
        return self._after.sum(instrument.prometheus_name, **labels)

    def most(self, instrument: Instrument) -> float:
        """Largest latest value of a gauge: each worker has a series."""
        return max(self._after.samples.get(instrument.prometheus_name, {}).values(), default=0.0)

    def rate(self, instrument: Instrument, ending: str = "", **labels: str) -> float:
        """Growth of a counter per second; `ending` picks a histogram's series. A restarted server counts from 0."""
        name = instrument.prometheus_name + ending
        grown = self._after.sum(name, **labels) - self._before.sum(name, **labels)
        return (grown if grown >= 0 else self._after.sum(name, **labels)) / self.seconds

    def mean(self, instrument: Instrument, **labels: str) -> float:
        """Mean of the values that a histogram took in between; NaN if none."""
        count = self.rate(instrument, "_count", **labels)
        return self.rate(instrument, "_sum", **labels) / count if count else math.nan

    def buckets(self, instrument: Instrument, **labels: str) -> list[tuple[float, float]]:
        """Each bucket's upper bound with its values per second."""
        bounds = (*instrument.bounds, math.inf)
        ends = ("+Inf" if bound == math.inf else str(float(bound)) for bound in bounds)
        up_to = [self.rate(instrument, "_bucket", le=end, **labels) for end in ends]
        steps = itertools.pairwise((0.0, *up_to))
        return [(bound, max(after - before, 0.0)) for bound, (before, after) in zip(bounds, steps, strict=True)]

    def quantile(self, q: float, instrument: Instrument, **labels: str) -> float:
        """A quantile, interpolated within its bucket as Prometheus does; NaN if there are no values."""
        buckets = self.buckets(instrument, **labels)
        wanted = q * sum(count for _, count in buckets)
        low = 0.0
        for bound, count in buckets:
            if count and wanted <= count:
                return low if bound == math.inf else low + (bound - low) * wanted / count
            wanted -= count
            low = bound
        return math.nan

    def values(self, instrument: Instrument, attribute: str) -> list[str]:
        """The values of an attribute, sorted."""
        label = attribute.replace(".", "_")
        name = instrument.prometheus_name + ("_count" if instrument.kind == "histogram" else "")
        return sorted({dict(labels).get(label, "") for labels in self._after.samples.get(name, {})})
