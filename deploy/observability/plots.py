"""Draw the dashboards from a Prometheus, without Grafana: one picture for each dashboard.

`just plots --prometheus http://localhost:9090 --minutes 5`
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
_DAY = 86_400.0
POINTS = 200
_LEGEND_WIDTH = 180
"""Characters in a line of the legends of all panels in a row."""

Series: TypeAlias = tuple[str, list[float], list[float]]
"""A legend, times since the start in seconds, and values."""


@dataclass(frozen=True)
class Range:
    """A query range of one Prometheus: the time from `start` to `end`, rates over `window`."""

    prometheus: str
    start: float
    end: float
    window: str

    def query(self, expression: str, legend: str) -> list[Series]:
        """The series that Grafana would get for a query of a panel."""
        expression = expression.replace("$__rate_interval", self.window)
        for variable in ("$job", "$instance"):
            expression = expression.replace(variable, ".*")
        step = max((self.end - self.start) / POINTS, 1.0)
        asked = {"query": expression, "start": self.start, "end": self.end, "step": step}
        with urllib.request.urlopen(  # noqa: S310 (the operator's own address)
            f"{self.prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=30
        ) as answer:
            found = json.load(answer)["data"]["result"]
        return [self._series(each, legend) for each in found]

    def _series(self, found: Mapping[str, Any], legend: str) -> Series:
        legend = " ".join(re.sub(r"\{\{(\w+)\}\}", lambda label: found["metric"].get(label[1], ""), legend).split())
        times = [float(at) - self.start for at, _ in found["values"]]
        return legend, times, [float(value) for _, value in found["values"]]


def draw(dashboard: Mapping[str, Any], asked: Range) -> Figure:
    """One picture of a dashboard: its rows with their titles, and the panels of each in their order."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            rows[panel["title"]] = []
        else:
            rows[list(rows)[-1]].append(panel)
    columns = [_columns(len(panels)) for panels in rows.values()]
    heights = [math.ceil(len(panels) / wide) for panels, wide in zip(rows.values(), columns, strict=True)]
    figure = Figure(figsize=(12.5, 2.7 * sum(heights)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (title, panels), height, wide in zip(parts, rows.items(), heights, columns, strict=True):
        part.suptitle(title, fontweight="bold", x=0.01, ha="left")
        axes: Sequence[Axes] = part.subplots(height, wide, squeeze=False).flatten().tolist()
        for panel, axis in zip(panels, axes, strict=False):
            _draw_panel(axis, panel, asked, _LEGEND_WIDTH // wide)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    return figure


def _columns(panels: int) -> int:
    """Three panels in a line, or four if they fill it better."""
    return 4 if -panels % 4 < -panels % 3 else 3


def _draw_panel(axis: Axes, panel: Mapping[str, Any], asked: Range, legend_width: int) -> None:
    series = [each for target in panel["targets"] for each in asked.query(target["expr"], target["legendFormat"])]
    divisor, unit = _unit(panel, series)
    series = [(name, times, [value / divisor for value in values]) for name, times, values in series]
    axis.set_title(f"{panel['title']}{unit}", fontsize=10, loc="left")
    axis.tick_params(labelsize=8)
    axis.set_xlim(0, asked.end - asked.start)
    axis.set_xlabel("s", fontsize=8, loc="right", labelpad=1)
    axis.grid(alpha=0.3)
    {"heatmap": _draw_heatmap, "stat": _draw_text}.get(panel["type"], _draw_lines)(axis, series, panel, divisor)
    if panel["type"] not in {"heatmap", "stat"} and series:
        # Below the axes, so that it hides no line.
        columns = max(1, legend_width // (max(len(name) for name, _, _ in series) + 8))
        axis.legend(
            fontsize=8, loc="upper left", bbox_to_anchor=(-0.02, -0.12), frameon=False, borderpad=0,
            ncols=columns, columnspacing=1, handlelength=1.2,
        )  # fmt: skip


def _draw_lines(axis: Axes, series: Sequence[Series], panel: Mapping[str, Any], divisor: float) -> None:
    stacked = "stacking" in panel.get("fieldConfig", {}).get("defaults", {}).get("custom", {})
    times = sorted({at for _, ats, _ in series for at in ats})
    if stacked and series:
        layers = [[values.get(at, 0.0) for at in times] for values in (_finite(each) for each in series)]
        axis.stackplot(times, layers, labels=[name for name, _, _ in series], alpha=0.7)
    else:
        for each in series:
            known = _finite(each)
            axis.plot(list(known), list(known.values()), label=each[0], linewidth=1.4)
    lowest, highest = axis.get_ylim()
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        level = (step["value"] or 0.0) / divisor
        # Far from the data a threshold would flatten it.
        if step["color"] != "transparent" and level and lowest < level < 2 * highest:
            axis.axhline(level, color=step["color"], linestyle="--", linewidth=1)
    axis.set_ylim(0, 1.05 * highest if any(any(values) for _, _, values in series) else 1)
    if not series:
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", color="grey")


def _draw_text(axis: Axes, series: Sequence[Series], panel: Mapping[str, Any], _divisor: float) -> None:
    """The last values of a panel of numbers, in the colour of their threshold, with names if it shows them."""
    axis.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [])
    for number, (name, _, values) in enumerate(series):
        last = next((value for value in reversed(values) if math.isfinite(value)), math.nan)
        shown = f"{last:.1%}" if defaults.get("unit") == "percentunit" else f"{last:g}"
        reached = [step["color"] for step in steps if step["value"] is None or last >= step["value"]]
        text, size = (name, 10) if panel["options"].get("textMode") == "name" else (shown, 28)
        colour = reached[-1] if reached else "black"
        axis.text(0.5, 0.75 - 0.15 * number, text, transform=axis.transAxes, ha="center", fontsize=size, color=colour)


def _draw_heatmap(axis: Axes, series: Sequence[Series], _: Mapping[str, Any], _divisor: float) -> None:
    by_bound = sorted(series, key=lambda each: float(each[0].replace("+Inf", "inf")))
    times = sorted({at for _, ats, _ in series for at in ats})
    up_to = [[_finite(each).get(at, 0.0) for at in times] for each in by_bound]
    below = [[0.0] * len(times), *up_to]
    cells = [[max(b - a, 0.0) for a, b in zip(*pair, strict=True)] for pair in zip(below, up_to, strict=False)]
    kept = [number for number, row in enumerate(cells) if any(row)]
    low, high = (min(kept), max(kept)) if kept else (0, len(cells) - 1)
    axis.pcolormesh(times, range(low, high + 1), cells[low : high + 1], cmap="Blues", shading="nearest")
    axis.set_yticks(range(low, high + 1), [name for name, _, _ in by_bound[low : high + 1]], fontsize=7)


def _finite(series: Series) -> dict[float, float]:
    return {at: value for at, value in zip(series[1], series[2], strict=True) if math.isfinite(value)}


def _unit(panel: Mapping[str, Any], series: Sequence[Series]) -> tuple[float, str]:
    """The divisor of the values, and the unit that the title then names."""
    if panel["type"] == "heatmap":
        return 1.0, {"s": ", s", "short": ", rows"}[panel["options"]["yAxis"]["unit"]]
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    largest = max((value for _, _, values in series for value in values if math.isfinite(value)), default=0.0)
    if unit == "s":
        return (_DAY, ", days") if largest > _DAY else (1.0, ", s") if largest > 1 else (1e-3, ", ms")
    return {"percentunit": (1.0, ", share"), "reqps": (1.0, " per second"), "bytes": (1e6, ", MB")}.get(unit, (1.0, ""))


def main() -> None:
    """Draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://localhost:9090")
    parser.add_argument("--minutes", type=float, default=5.0, help="how far back the pictures go")
    parser.add_argument("--window", default="1m", help="what rates are taken over")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="the folder of the pictures")
    arguments = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "recommender"
    now = time.time()
    asked = Range(arguments.prometheus, now - arguments.minutes * 60, now, arguments.window)
    for path in sorted((HERE / "dashboards").glob("*.json")):
        figure = draw(json.loads(path.read_text(encoding="utf-8")), asked)
        figure.savefig(arguments.output / f"{path.stem}.png", dpi=100)


if __name__ == "__main__":
    main()
