"""How do latency and throughput grow with the batch? Draws what `recommender profile --output` wrote.

`just bench costs profile.json`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Measurement: TypeAlias = Mapping[str, float]


def draw(measured: Mapping[str, object], measurements: Sequence[Measurement]) -> Figure:
    lengths = sorted({each["history"] for each in measurements})
    figure = Figure(figsize=(11, 4 * len(lengths)), layout="constrained")
    figure.suptitle(f"{measured['model']} on {measured['machine']}")
    for row, length in zip(figure.subplots(len(lengths), 2, squeeze=False), lengths, strict=True):
        latency, throughput = row
        _axes(latency, f"A run in ms, histories of {length:g} items")
        _axes(throughput, f"Rows a second, histories of {length:g} items")
        latency.axhline(float(str(measured["p99_ms"])) / 2, color="grey", ls=":", label="half of the objective")
        chosen = [each for each in measurements if each["history"] == length]
        for threads, each in groupby(chosen, key=lambda measurement: measurement["threads"]):
            line = list(each)
            batches = [point["batch"] for point in line]
            (drawn,) = latency.plot(batches, [point["p50_ms"] for point in line], "o-", label=f"p50, {threads:g} CPUs")
            latency.plot(batches, [point["p99_ms"] for point in line], "o--", color=drawn.get_color(), label="p99")
            throughput.plot(batches, [point["rows_a_second"] for point in line], "o-", label=f"{threads:g} CPUs")
        latency.legend()
        throughput.legend()
    return figure


def _axes(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="batch size", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, help="what `recommender profile --output` wrote")
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text(encoding="utf-8"))
    picture = options.measured.with_suffix(".svg")
    draw(measured, measured["measurements"]).savefig(picture)
    print(picture)


if __name__ == "__main__":
    main()
