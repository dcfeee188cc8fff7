"""A running server in a terminal: what it does now, read from its metrics endpoint twice and compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from recommender.cli.lazy import fail
from recommender.cli.running import load_settings
from recommender.observability import instruments as telemetry
from recommender.observability.scraping import Change, NoMetricsError, scrape

_PICTURE_WIDTH = 150
_BAR = 24
_SPARKS = "▁▂▃▄▅▆▇█"
_REMEMBERED = 60
"""How many readings the small plots show."""
_PRESSED = 0.8
"""From what share on a backlog or an engine is worth a colour."""


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


def top(
    url: Annotated[
        str | None, typer.Option(help="The server's metrics; by default at RECOMMENDER_METRICS_PORT, or 9464.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds between two looks.")] = 2.0,
    looks: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 never.")] = 0,
    svg: Annotated[Path | None, typer.Option(help="Write the last look to this file, as a picture.")] = None,
) -> None:
    """Watch a running server: calls, latency, batches, load; from its metrics endpoint."""
    url = url or f"http://localhost:{load_settings().operations.metrics_port or 9464}/metrics"
    console = Console()
    last: RenderableType = ""
    try:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=console.is_terminal) as live:
            for last in itertools.islice(watch(url, interval), looks or None):
                live.update(last, refresh=True)
    except NoMetricsError as error:
        fail(str(error), 1)
    if console.is_terminal:
        console.print(last)  # the screen has taken it away
    if svg is not None:
        picture = Console(record=True, file=io.StringIO(), width=_PICTURE_WIDTH)
        picture.print(last)
        picture.save_svg(str(svg), title="recommender top")


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
