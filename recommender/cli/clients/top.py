"""A running server in a terminal: what it does now, read from its metrics endpoint twice and compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from recommender.cli.lazy import fail
from recommender.cli.running import load_settings
from recommender.observability import instruments as telemetry
from recommender.observability.scraping import Change, NoMetricsError, scrape

_PICTURE_WIDTH = 120
_LEAST_FOR_TWO, _LEAST_FOR_ALL = 72, 92
"""Columns of a terminal from which panels stand side by side, and from which they show every quantile."""
_WIDEST = 74
_FRAME = 4
_CALL = 18
"""Width of a method with its status; a longer pair takes two lines."""
_VALUE = 7
_BAR = 24
_SPARKS = "▁▂▃▄▅▆▇█"
_REMEMBERED = 60
"""How many readings the small plots show at most."""
_PRESSED = 0.8
"""From what share on a backlog or an engine is worth a colour."""


class Screen:
    """Draws one change after another; remembers what its small plots need."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)
        self._slowest: deque[float] = deque(maxlen=_REMEMBERED)

    def draw(self, change: Change) -> RenderableType:
        """The whole picture of a change; it fits itself to the width that it is printed at."""
        self._rates.append(change.rate(telemetry.CALL_DURATION, "_count"))
        self._slowest.append(change.quantile(0.99, telemetry.CALL_DURATION))
        return _Picture(change, self._url, tuple(self._rates), tuple(self._slowest))


@dataclass(frozen=True)
class _Picture:
    change: Change
    url: str
    rates: Sequence[float]
    slowest: Sequence[float]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        change, columns = self.change, options.max_width
        side_by_side = columns >= _LEAST_FOR_TWO
        width = min(columns // 2 if side_by_side else columns, _WIDEST)
        inner, brief = width - _FRAME, side_by_side and columns < _LEAST_FOR_ALL
        calls, latency, batches, load = (
            Panel(content, title=title, title_align="left", border_style="dim", width=width)
            for title, content in (
                ("calls", self._calls(inner, brief=brief)),
                ("latency", _latency(change, brief=brief)),
                ("batches", _batches(change, inner)),
                ("load", _load(change, inner)),
            )
        )
        yield _title(change, self.url)
        if not side_by_side:
            yield Group(calls, latency, batches, load)
            return
        grid = Table.grid()
        grid.add_row(Group(calls, latency), Group(batches, load))
        yield grid

    def _calls(self, inner: int, *, brief: bool) -> RenderableType:
        change = self.change
        quantiles = {"p99": 0.99} if brief else {"p50": 0.5, "p99": 0.99}
        table = _table(Column("call", min_width=_CALL), "calls/s", *quantiles)
        method, status = telemetry.RPC_METHOD, telemetry.RPC_STATUS
        for name, code in itertools.product(
            change.values(telemetry.CALL_DURATION, method), change.values(telemetry.CALL_DURATION, status)
        ):
            which = {method.replace(".", "_"): name, status.replace(".", "_"): code}
            rate = change.rate(telemetry.CALL_DURATION, "_count", **which)
            if rate:
                slow = [change.quantile(q, telemetry.CALL_DURATION, **which) for q in quantiles.values()]
                style = "" if code == "OK" else "red"
                call = f"{name.rpartition('/')[2]} {code}"
                table.add_row(call, _number(rate), *map(_duration, slow), style=style)
        plots = Table.grid(padding=(0, 1))
        most = inner - 2 * (_VALUE + 1)
        plots.add_row("calls/s", _sparks(self.rates[-most:]), _number(self.rates[-1]))
        plots.add_row("p99", _sparks(self.slowest[-most:]), _duration(self.slowest[-1]))
        return Group(table, plots)


def top(
    url: Annotated[
        str | None, typer.Option(help="The server's metrics; by default at RECOMMENDER_METRICS_PORT, or 9464.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds between two looks.")] = 2.0,
    looks: Annotated[int, typer.Option(min=0, help="Stop after this many; 0 never stops.")] = 0,
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
        svg.write_text(_without_font_urls(picture.export_svg(title="recommender top")), encoding="utf-8")


def _without_font_urls(svg: str) -> str:
    """Keep the installed fonts that Rich names, and drop the addresses that it would download them from."""
    return re.sub(r",\s*url\([^)]*\) format\([^)]*\)", "", svg)


def watch(url: str, interval: float) -> Iterator[RenderableType]:
    """A picture every `interval` seconds, without end. Raises NoMetricsError only if there never were any."""
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


def _latency(change: Change, *, brief: bool) -> RenderableType:
    quantiles = {"p50": 0.5, "p99": 0.99} if brief else {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    table = _table("", "mean", *quantiles)
    for name, instrument in (
        ("whole call", telemetry.CALL_DURATION),
        ("  waiting", telemetry.QUEUE_TIME),
        ("  running", telemetry.INFERENCE_TIME),
        ("loop lag", telemetry.LOOP_LAG),
    ):
        slow = (change.quantile(q, instrument) for q in quantiles.values())
        table.add_row(name, *map(_duration, (change.mean(instrument), *slow)))
    return table


def _batches(change: Change, inner: int) -> RenderableType:
    table = _table("rows", Column(""), "runs/s")
    longest = min(inner - 2 * (_VALUE + 2), _BAR)
    buckets = [(bound, rate) for bound, rate in change.buckets(telemetry.BATCH_SIZES) if rate]
    most = max((rate for _, rate in buckets), default=1.0)
    bounds = (0, *telemetry.SIZE_BOUNDS, math.inf)
    for bound, rate in buckets:
        least = bounds[bounds.index(bound) - 1] + 1
        rows = f"{least:g}" if least == bound else f"{least:g}-{bound:g}"
        table.add_row(rows, Text("█" * max(round(rate / most * longest), 1), style="cyan"), _number(rate))
    rows_run = change.rate(telemetry.BATCH_SIZES, "_sum")
    padded = change.rate(telemetry.PADDED) / rows_run if rows_run else math.nan
    said = f"rows/run {_number(change.mean(telemetry.BATCH_SIZES))}, padding/row {_number(padded)}"
    return Group(table, Text(said))


def _load(change: Change, inner: int) -> RenderableType:
    slots = change.now(telemetry.ENGINE_SLOTS)
    limit = change.now(telemetry.BACKLOG_LIMIT)
    waiting = change.now(telemetry.WAITING)
    table = Table.grid(padding=(0, 1))
    longest = min(inner - 4 * _VALUE, _BAR)
    busy = change.rate(telemetry.INFERENCE_TIME, "_sum") / slots if slots else 0.0
    table.add_row("engine busy", _bar(busy, longest), f"{min(busy, 1.0):.0%}")
    table.add_row("backlog", _bar(waiting / limit if limit else 0.0, longest), f"{waiting:,.0f} of {limit:,.0f}")
    table.add_row("running", "", f"{change.now(telemetry.RUNNING):,.0f}")
    for outcome in change.values(telemetry.REQUESTS, telemetry.OUTCOME):
        rate = change.rate(telemetry.REQUESTS, **{telemetry.OUTCOME.replace(".", "_"): outcome})
        if rate and outcome != "answered":
            table.add_row(Text(outcome, style="red"), "", f"{_number(rate)}/s")
    if fallbacks := change.rate(telemetry.FALLBACKS):
        table.add_row("fallbacks", "", f"{_number(fallbacks)}/s")
    table.add_row("CPU", "", f"{change.rate(telemetry.CPU_TIME):.2f} cores")
    table.add_row("memory", "", f"{change.now(telemetry.MEMORY) / 1e6:,.0f} MB")
    return table


def _table(first: str | Column, *others: str | Column) -> Table:
    """A table without a frame; columns that are named by a string, but the first, hold values."""
    values = (
        Column(each, justify="right", min_width=_VALUE, no_wrap=True) if isinstance(each, str) else each
        for each in others
    )
    return Table(first, *values, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)


def _bar(share: float, longest: int) -> Text:
    filled = round(min(max(share, 0.0), 1.0) * longest)
    style = "red" if share >= _PRESSED else "green"
    return Text.assemble(("█" * filled, style), ("░" * (longest - filled), "dim"))


def _sparks(values: Sequence[float]) -> Text:
    most = max((value for value in values if math.isfinite(value)), default=0.0) or 1.0
    steps = (value if math.isfinite(value) else 0.0 for value in values)
    return Text("".join(_SPARKS[min(int(value / most * len(_SPARKS)), len(_SPARKS) - 1)] for value in steps), "cyan")


def _number(value: float) -> str:
    """A number for people to read: three digits below 100, and two decimals where that shows anything."""
    if math.isnan(value):
        return "–"
    for least, digits in ((99.95, 0), (9.995, 1), (0.00995, 2)):
        if value >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.1g}"


def _duration(seconds: float) -> str:
    return f"{_number(seconds * 1e3)} ms" if seconds < 1 else "–" if math.isnan(seconds) else f"{_number(seconds)} s"
