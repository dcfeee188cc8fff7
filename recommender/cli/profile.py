"""The measurements of `recommender profile` for people to read: cells of a table, and a page with plots."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from html import escape

from recommender.cli.chart import Series, line_chart
from recommender.engine.machine import available_cpus
from recommender.engine.profile import Advice, Point, in_ms

COLUMNS = ("threads", "history", "batch", "runs", "p50 ms", "p99 ms", "µs a row", "rows a second")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 72rem; color: #222;
  background: #fff }}
section {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }}
table {{ border-collapse: collapse; margin-top: 1rem }} td, th {{ padding: .2rem .8rem; text-align: right }}
tr:nth-child(even) {{ background: #f4f4f4 }} pre {{ background: #f4f4f4; padding: 1rem }}
</style>
<h1>{title}</h1>
<p>{machine}. Runs of the engine alone, on its own thread: gRPC and the wait for a batch come on top.</p>
{sections}
<h2>Recommended settings</h2>
<pre>{advice}</pre>
<h2>Measurements</h2>
<table>
{rows}
</table>
</html>
"""


def page(title: str, points: Sequence[Point], advice: Advice, objective: float) -> str:
    """The measurements as one HTML page that needs nothing from elsewhere."""
    sections = []
    for history in sorted({point.history for point in points}):
        latency, throughput = [], []
        for count in sorted({point.threads for point in points}):
            line = sorted(
                (point for point in points if (point.threads, point.history) == (count, history)),
                key=lambda point: point.rows,
            )
            name = f"{count} thread{'s' if count > 1 else ''}"
            latency.append(Series(f"p50, {name}", [(point.rows, point.quantile(0.5) * 1e3) for point in line]))
            latency.append(
                Series(f"p99, {name}", [(point.rows, point.quantile(0.99) * 1e3) for point in line], dashed=True)
            )
            throughput.append(Series(name, [(point.rows, point.throughput) for point in line]))
        items = f"histories of {history} item{'s' if history > 1 else ''}"
        sections += [
            "<section>",
            line_chart(
                f"A run in ms, {items}", "batch size", latency, limit=("half of the objective", objective * 500)
            ),
            line_chart(f"Rows a second, {items}", "batch size", throughput),
            "</section>",
        ]
    head = "".join(f"<th>{name}" for name in COLUMNS)
    rows = ["".join(f"<td>{cell}" for cell in cells(point)) for point in points]
    return _PAGE.format(
        title=f"What {escape(title)} costs",
        machine=escape(f"{available_cpus()} CPUs ({platform.machine()}, {platform.system()})"),
        sections="\n".join(sections),
        advice=escape("\n".join(advice.lines)),
        rows="\n".join(f"<tr>{row}</tr>" for row in (head, *rows)),
    )


def cells(point: Point) -> tuple[str, ...]:
    """A measurement as the table shows it, in the order of COLUMNS."""
    half = point.quantile(0.5)
    return (
        str(point.threads),
        str(point.history),
        str(point.rows),
        str(len(point.seconds)),
        in_ms(half),
        in_ms(point.quantile(0.99)),
        f"{half / point.rows * 1e6:,.1f}",
        f"{point.throughput:,.0f}",
    )
