"""Draws what `python -m bench.peers --markdown FILE` wrote: `python -m bench.peers.picture FILE PICTURE.svg`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

OURS, THEIRS = "#0072b2", "#bbbbbb"


def bars(page: str) -> dict[str, list[tuple[str, float, float, float]]]:
    """Of each table of calls/s its heading, and of each server its median, least and most."""
    found: dict[str, list[tuple[str, float, float, float]]] = {}
    heading, wanted = "", False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.endswith(":"):
            heading = line.rstrip(":")
        elif not line.startswith("|"):
            wanted = False
        elif cells[:2] == ["server", "calls/s"]:
            wanted = True
        elif wanted and "---" not in line:
            median, _, spread = cells[1].replace(",", "").partition(" ")
            least, most = spread.strip("[]").split(" … ") if spread else (median, median)
            found.setdefault(heading, []).append((cells[0], float(median), float(least), float(most)))
    return found


def draw(page: str) -> Figure:
    """One panel a table, the quickest server on top; lines reach from the least to the most of the rounds."""
    tables = bars(page)
    figure = Figure(figsize=(9.0, 0.5 + 3.6 * len(tables)), layout=ConstrainedLayoutEngine(hspace=0.06))
    panels = figure.subplots(len(tables), squeeze=False)[:, 0]
    for axes, (heading, servers) in zip(panels, tables.items(), strict=True):
        ordered = sorted(servers, key=lambda server: server[1])
        medians = [median for _, median, _, _ in ordered]
        below = [median - least for _, median, least, _ in ordered]
        above = [most - median for _, median, _, most in ordered]
        shades = [OURS if name in ("grpc", "envoy") else THEIRS for name, *_ in ordered]
        names = [f"recommender, {name} edge" if shade == OURS else name
                 for (name, *_), shade in zip(ordered, shades, strict=True)]  # fmt: skip
        axes.barh(names, medians, color=shades, xerr=(below, above), error_kw={"elinewidth": 0.8, "ecolor": "#444"})
        axes.bar_label(axes.containers[-1], [f"{median:,.0f}" for median in medians], padding=14, fontsize=8)
        axes.set_title(f"Calls/s: {heading}", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlim(right=1.15 * max(most for *_, most in ordered))
        axes.set_xlabel("calls/s: median of the rounds, with minimum and maximum")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": "peers"}):
        draw(arguments.page.read_text(encoding="utf-8")).savefig(arguments.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
