"""A running server in a terminal: what it does now, read from its metrics endpoint twice and compared."""

from __future__ import annotations

import itertools
import math
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from recommender.observability import instruments as telemetry
from recommender.observability.instruments import Instrument

_PATIENCE = 5.0
_BAR = 24
_SPARKS = "▁▂▃▄▅▆▇█"
_REMEMBERED = 60
"""How many readings the small plots show."""
_PRESSED = 0.8
"""From what share on a backlog or an engine is worth a colour."""

Labels: TypeAlias = tuple[tuple[str, str], ...]


class NoMetricsError(Exception):
    """Nothing at the address answers with metrics of this service; the message says what to do."""


@dataclass(frozen=True)
class Scrape:
    """All samples of a scrape, by name and labels, and when it was taken (monotonic seconds)."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels; 0 where there is none."""
        return sum(value for has, value in self.samples.get(name, {}).items() if labels.items() <= dict(has).items())


def scrape(url: str) -> Scrape:
    """Read the metrics there. Raises NoMetricsError."""
    advice = "start the server with RECOMMENDER_METRICS_PORT=9464, or say where its metrics are with --url"
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:  # noqa: S310 (the operator's own address)
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise NoMetricsError(f"no metrics at {url}: {reason}; {advice}") from error
    return parse(text, time.monotonic(), url)


def parse(text: str, at: float, url: str = "the address") -> Scrape:
    """A scrape in the text format of Prometheus. Raises NoMetricsError if it is of something else."""
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    except ValueError as error:
        raise NoMetricsError(f"{url} answers, but not with metrics") from error
    if telemetry.UPTIME.prometheus_name not in samples or telemetry.MODEL_INFO.prometheus_name not in samples:
        raise NoMetricsError(f"{url} has metrics, but none of a server of ours that has loaded its model")
    return Scrape(at, samples)


class Change:
    """What happened between two scrapes of one server."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self._before = before
        self._after = after
        self.seconds = max(after.at - before.at, 1e-9)

    def now(self, instrument: Instrument, **labels: str) -> float:
        """What a gauge stands at."""
        return self._after.sum(instrument.prometheus_name, **labels)

    def most(self, instrument: Instrument) -> float:
        """The largest that a gauge stands at: several workers have one each."""
        return max(self._after.samples.get(instrument.prometheus_name, {}).values(), default=0.0)

    def rate(self, instrument: Instrument, ending: str = "", **labels: str) -> float:
        """How fast a counter grew, a second; of a histogram say which of its series. A restart counts from 0."""
        name = instrument.prometheus_name + ending
        grown = self._after.sum(name, **labels) - self._before.sum(name, **labels)
        return (grown if grown >= 0 else self._after.sum(name, **labels)) / self.seconds

    def mean(self, instrument: Instrument, **labels: str) -> float:
        """The mean of what a histogram took meanwhile; NaN if that is nothing."""
        count = self.rate(instrument, "_count", **labels)
        return self.rate(instrument, "_sum", **labels) / count if count else math.nan

    def buckets(self, instrument: Instrument, **labels: str) -> list[tuple[float, float]]:
        """Each bound with how many fell up to it and above the bound before, a second."""
        bounds = (*instrument.bounds, math.inf)
        ends = ("+Inf" if bound == math.inf else str(float(bound)) for bound in bounds)
        up_to = [self.rate(instrument, "_bucket", le=end, **labels) for end in ends]
        steps = itertools.pairwise((0.0, *up_to))
        return [(bound, max(after - before, 0.0)) for bound, (before, after) in zip(bounds, steps, strict=True)]

    def quantile(self, q: float, instrument: Instrument, **labels: str) -> float:
        """A quantile of it, even within a bucket, as Prometheus has it; NaN if there is nothing."""
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
        """The values that an attribute has, in order."""
        label = attribute.replace(".", "_")
        name = instrument.prometheus_name + ("_count" if instrument.kind == "histogram" else "")
        return sorted({dict(labels).get(label, "") for labels in self._after.samples.get(name, {})})


class Screen:
    """Draws one change after another; remembers what its small plots need."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)
        self._slowest: deque[float] = deque(maxlen=_REMEMBERED)

    def draw(self, change: Change) -> RenderableType:
        """The whole picture of a change."""
        self._rates.append(change.rate(telemetry.CALL_DURATION, "_count"))
        self._slowest.append(change.quantile(0.99, telemetry.CALL_DURATION))
        left = Group(_panel("calls", self._calls(change)), _panel("latency", _latency(change)))
        right = Group(_panel("batches", _batches(change)), _panel("load", _load(change)))
        return Group(_title(change, self._url), Columns([left, right]))

    def _calls(self, change: Change) -> RenderableType:
        table = Table(
            Column("method", no_wrap=True),
            Column("status", no_wrap=True),
            *_right("calls/s", "p50", "p99"),
            box=SIMPLE_HEAD,
        )
        method, status = telemetry.RPC_METHOD, telemetry.RPC_STATUS
        for name, code in itertools.product(
            change.values(telemetry.CALL_DURATION, method), change.values(telemetry.CALL_DURATION, status)
        ):
            which = {method.replace(".", "_"): name, status.replace(".", "_"): code}
            rate = change.rate(telemetry.CALL_DURATION, "_count", **which)
            if rate:
                slow = [change.quantile(q, telemetry.CALL_DURATION, **which) for q in (0.5, 0.99)]
                style = "" if code == "OK" else "red"
                table.add_row(name.rpartition("/")[2], code, f"{rate:,.0f}", *map(_duration, slow), style=style)
        plots = Table.grid(padding=(0, 1))
        plots.add_row("calls/s", _sparks(self._rates), f"{self._rates[-1]:,.0f}")
        plots.add_row("p99", _sparks(self._slowest), _duration(self._slowest[-1]))
        return Group(table, plots)


def watch(url: str, interval: float) -> Iterator[RenderableType]:
    """A picture every `interval` seconds, for ever. Raises NoMetricsError only if there never were any."""
    screen, before = Screen(url), scrape(url)
    while True:
        time.sleep(interval)
        try:
            after = scrape(url)
        except NoMetricsError as error:
            yield Text(str(error), style="red")
            continue
        yield screen.draw(Change(before, after))
        before = after


def _title(change: Change, url: str) -> RenderableType:
    models = ", ".join(change.values(telemetry.MODEL_INFO, telemetry.MODEL))
    providers = ", ".join(change.values(telemetry.MODEL_INFO, telemetry.EXECUTION_PROVIDER))
    uptime = round(change.most(telemetry.UPTIME))
    up = f"{uptime // 3600}:{uptime // 60 % 60:02}:{uptime % 60:02}"
    return Text.assemble((f" {models} ", "bold reverse"), f" {providers}, up {up}   ", (url, "dim"))


def _latency(change: Change) -> RenderableType:
    table = Table("", *_right("mean", "p50", "p95", "p99"), box=SIMPLE_HEAD)
    for name, instrument in (
        ("whole call", telemetry.CALL_DURATION),
        ("  waiting", telemetry.QUEUE_TIME),
        ("  running", telemetry.INFERENCE_TIME),
        ("loop late", telemetry.LOOP_LAG),
    ):
        quantiles = (change.quantile(q, instrument) for q in (0.5, 0.95, 0.99))
        table.add_row(name, *map(_duration, (change.mean(instrument), *quantiles)))
    return table


def _batches(change: Change) -> RenderableType:
    table = Table("rows", "", *_right("runs/s"), box=SIMPLE_HEAD)
    buckets = [(bound, rate) for bound, rate in change.buckets(telemetry.BATCH_SIZES) if rate]
    most = max((rate for _, rate in buckets), default=1.0)
    bounds = (0, *telemetry.SIZE_BOUNDS, math.inf)
    for bound, rate in buckets:
        least = bounds[bounds.index(bound) - 1] + 1
        rows = f"{least:g}" if least == bound else f"{least:g}-{bound:g}"
        table.add_row(rows, Text("█" * max(round(rate / most * _BAR), 1), style="cyan"), f"{rate:,.0f}")
    rows_run = change.rate(telemetry.BATCH_SIZES, "_sum")
    padded = change.rate(telemetry.PADDED) / rows_run if rows_run else math.nan
    said = f"rows a run {_number(change.mean(telemetry.BATCH_SIZES))}   padding a row {_number(padded)} cells"
    return Group(table, Text(said))


def _load(change: Change) -> RenderableType:
    slots = change.now(telemetry.ENGINE_SLOTS)
    limit = change.now(telemetry.BACKLOG_LIMIT)
    waiting = change.now(telemetry.WAITING)
    table = Table.grid(padding=(0, 1))
    busy = change.rate(telemetry.INFERENCE_TIME, "_sum") / slots if slots else 0.0
    table.add_row("engine busy", _bar(busy), f"{min(busy, 1.0):.0%}")
    table.add_row("backlog", _bar(waiting / limit if limit else 0.0), f"{waiting:,.0f} of {limit:,.0f}")
    table.add_row("in a run", "", f"{change.now(telemetry.RUNNING):,.0f}")
    for outcome in change.values(telemetry.REQUESTS, telemetry.OUTCOME):
        rate = change.rate(telemetry.REQUESTS, **{telemetry.OUTCOME.replace(".", "_"): outcome})
        if rate and outcome != "answered":
            table.add_row(Text(outcome, style="red"), "", f"{rate:,.1f}/s")
    if fallbacks := change.rate(telemetry.FALLBACKS):
        table.add_row("fallbacks", "", f"{fallbacks:,.1f}/s")
    table.add_row("CPU", "", f"{change.rate(telemetry.CPU_TIME):.2f} cores")
    table.add_row("memory", "", f"{change.now(telemetry.MEMORY) / 1e6:,.0f} MB")
    return table


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim", width=74)


def _right(*names: str) -> Sequence[Column]:
    return [Column(name, justify="right") for name in names]


def _bar(share: float) -> Text:
    filled = round(min(max(share, 0.0), 1.0) * _BAR)
    style = "red" if share >= _PRESSED else "green"
    return Text.assemble(("█" * filled, style), ("░" * (_BAR - filled), "dim"))


def _sparks(values: Sequence[float]) -> Text:
    most = max((value for value in values if math.isfinite(value)), default=0.0) or 1.0
    steps = (value if math.isfinite(value) else 0.0 for value in values)
    return Text("".join(_SPARKS[min(int(value / most * len(_SPARKS)), len(_SPARKS) - 1)] for value in steps), "cyan")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds * 1e3:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"
