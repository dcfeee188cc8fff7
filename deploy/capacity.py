"""How many replicas serve how many requests: the tables of docs/capacity.md, from measured costs.

python deploy/capacity.py                                  # the page's tables
python deploy/capacity.py --call-us 300 --most-calls 5000  # with your own figures
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import typer

RATES = (1_000, 10_000, 100_000, 1_000_000)
LEAST_REPLICAS = 2
"""One may be lost, or be replaced, and the other answers."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A size of the item table, the engine's cost of a row, and the memory of a model besides its float32 table.

    `row_us` is µs of CPU: batch time x threads / rows.
    """

    items: int
    dim: int
    row_us: float
    copies: float
    measured: bool = True

    @property
    def label(self) -> str:
        """Its row's name; a dagger where the cost is worked out."""
        return f"{self.items:,} × {self.dim}" + ("" if self.measured else " †")

    @property
    def memory_mb(self) -> int:
        """Memory of a process: 160 MB without a model, and the model."""
        return round(160 + self.copies * self.items * self.dim * 4 / 1e6)


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one kind of call: µs of CPU a history, engine included, on the smallest catalogue; most a second."""

    name: str
    history_us: float
    most: float

    def capacity(self, catalogue: Catalogue, smallest: Catalogue, cpus: int, share: float) -> float:
        """Histories a second that a replica carries with `share` of its CPUs and of its event loop."""
        cpu_us = self.history_us - smallest.row_us + catalogue.row_us
        return share * min(cpus * 1e6 / cpu_us, self.most)


# docs/performance-topk.md, 2 threads: 0.43 ms at batch 32, 5.23 ms and 27.4 ms at batch 64; ten million is ten times
# one. Small models are loaded twice.
CATALOGUES = (
    Catalogue(10_000, 32, 0.43e3 * 2 / 32, 4.5),
    Catalogue(100_000, 64, 5.23e3 * 2 / 64, 4.5),
    Catalogue(1_000_000, 64, 27.4e3 * 2 / 64, 1.35),
    Catalogue(10_000_000, 64, 27.4e3 * 2 / 64 * 10, 1.35, measured=False),
)


def replicas(rate: float, capacity: float) -> int:
    """Replicas for a rate; never fewer than two."""
    return max(LEAST_REPLICAS, math.ceil(rate / capacity))


def tables(costs: tuple[Cost, ...], cpus: int, share: float) -> str:
    """Both tables as Markdown."""
    lines = []
    for cost in costs:
        lines += [
            f"`{cost.name}`, replicas of {cpus} CPUs at {share:.0%}:",
            "",
            "| catalogue | memory a replica | histories/s a replica | "
            + " | ".join(f"{rate:,}/s" for rate in RATES)
            + " |",
            "| --- |" + " ---: |" * (2 + len(RATES)),
        ]
        for catalogue in CATALOGUES:
            capacity = cost.capacity(catalogue, CATALOGUES[0], cpus, share)
            cells = [f"{catalogue.memory_mb:,} MB", f"{capacity:,.0f}"]
            cells += [f"{replicas(rate, capacity):,}" for rate in RATES]
            lines.append(f"| {catalogue.label} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(
    call_us: Annotated[float, typer.Option(help="µs of CPU of a unary call, smallest catalogue.")] = 277.0,
    most_calls: Annotated[float, typer.Option(help="Unary calls/s of one process at most.")] = 4_580.0,
    row_us: Annotated[float, typer.Option(help="µs of CPU of a history in BatchRecommend.")] = 69.0,
    most_rows: Annotated[float, typer.Option(help="Histories/s of BatchRecommend of one process at most.")] = 28_888.0,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of a replica.")] = 2,
    share: Annotated[float, typer.Option(min=0.1, max=1.0, help="How busy a replica may be on average.")] = 0.6,
) -> None:
    """Print the tables."""
    costs = (Cost("Recommend", call_us, most_calls), Cost("BatchRecommend", row_us, most_rows))
    typer.echo(tables(costs, cpus, share), nl=False)


if __name__ == "__main__":
    typer.run(main)
