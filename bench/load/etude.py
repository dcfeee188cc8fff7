"""ETUDE's published scenarios on this machine: `just bench-etude`.

Kersbergen et al. (ICDE 2024) load catalogues of five shops at fixed rates with p90 within 50 ms end to end, on random
weights of 2^ceil(log2(C^0.25)) dimensions. Here each shop that fits gets its rate in the open loop. A linear ramp to
1.5 times that rate (`--ramp`) finds the highest rate within the objective. Generator and server share the machine. The
larger two are calculated from the measured cost of a row, and are marked as such.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from bench import facts
from bench.load import report
from bench.load.plan import Phase, Plan
from bench.load.run import Part, run, warm_up
from bench.load.scenarios import model, within
from bench.serving import serving
from recommender.settings.network import Edge

OBJECTIVE_MS, QUANTILE = 50.0, 0.9


@dataclass(frozen=True)
class Shop:
    """A published scenario."""

    name: str
    items: int
    rate: float
    published: str
    """Least hardware that met it in the paper."""

    @property
    def dim(self) -> int:
        """Size of an embedding."""
        size: int = 2 ** math.ceil(math.log2(self.items**0.25))
        return size


SHOPS = {
    "groceries-small": Shop("Groceries (small)", 10_000, 100, "one 5.5-vCPU machine"),
    "groceries-large": Shop("Groceries (large)", 100_000, 250, "one 5.5-vCPU machine"),
    "fashion": Shop("Fashion", 1_000_000, 500, "one T4, or three 5.5-vCPU machines, SASRec and STAMP only"),
    "e-commerce": Shop("e-Commerce", 10_000_000, 1_000, "five T4"),
    "platform": Shop("Platform", 20_000_000, 1_000, "three A100"),
}
FIT = ("groceries-small", "groceries-large", "fashion")


@dataclass(frozen=True)
class Figure:
    """Result of a scenario on a network."""

    network: str
    shop: Shop
    steady: Part
    highest: float
    """Rate up to which each second of the ramp met the objective."""

    @property
    def meets(self) -> bool:
        """Whether the published rate was within the objective, failed requests counting as late."""
        return self.steady.quantile_of_all(QUANTILE) * 1e3 <= OBJECTIVE_MS

    @property
    def row_seconds(self) -> float:
        """Engine time of a row, at the batch sizes of the steady run."""
        return self.steady.told.inference / self.steady.told.batch_size


def measured(network: str, shop: Shop, given: argparse.Namespace, console: Console) -> Figure:
    """Ask one shop on one network, and leave a report of each run."""
    seconds = given.seconds
    title = f"{shop.name}, {network}, {shop.items:,} × {shop.dim}"
    path = model(shop.items, shop.dim, network, given.coarse)
    with serving("--model", str(path), settings={"RECOMMENDER_EDGE": given.edge}) as server:
        plan = Plan(server.target, (Phase(seconds, shop.rate, shop.rate),), items=shop.items)
        warm_up(plan)
        steady = run(plan, metrics=server.metrics, console=console, title=f"{title}: {shop.rate:,.0f}/s")
        rising = replace(plan, phases=(Phase(2 * seconds, 1.0, given.ramp * shop.rate),))
        ramp = run(rising, metrics=server.metrics, console=console, title=f"{title}: ramp")
    told = facts.machine()
    for name, done in (("steady", steady), ("ramp", ramp)):
        page = report.html(done, title=f"{title}: {name}", facts=told, limit_ms=OBJECTIVE_MS)
        file = f"etude-{network}-{shop.items}-{name}"
        report.save(given.reports / f"{file}.html", page)
        if given.pictures is not None:
            report.save_plots(done, given.pictures, file, OBJECTIVE_MS)
    found = Figure(network, shop, steady.whole(), within(ramp, OBJECTIVE_MS, QUANTILE))
    p90 = found.steady.quantile_of_all(QUANTILE) * 1e3
    console.print(f"{title}: p90 {p90:,.1f} ms at {shop.rate:,.0f}/s", highlight=False)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["reference", "sasrec", "gru4rec"])
    parser.add_argument("--shops", nargs="+", default=list(FIT), choices=FIT)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the steady run; the ramp takes twice as long")
    parser.add_argument("--ramp", type=float, default=1.5, help="where the ramp ends, times the published rate")
    parser.add_argument("--edge", default="grpc", choices=get_args(Edge))
    parser.add_argument("--coarse", choices=["none", "int8"], help="see docs/models-export.md")
    parser.add_argument("--reports", type=Path, default=Path("bench-reports"))
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="where to write the plots as SVG files, too")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    figures = [
        measured(network, SHOPS[shop], arguments, console) for network in arguments.networks for shop in arguments.shops
    ]
    heads = ("shop", "network", "catalogue", "asked/s", "p50 ms", "p90 ms", "failed", "met", "highest/s in the ramp")
    table = Table(*heads, "rows/run", "engine ms a row", "published")
    for each in figures:
        part = each.steady
        table.add_row(
            each.shop.name, each.network, f"{each.shop.items:,} × {each.shop.dim}", f"{each.shop.rate:,.0f}",
            *(f"{part.quantile(q) * 1e3:,.1f}" for q in (0.5, 0.9)), f"{part.error_rate:.2%}",
            "yes" if each.meets else "no",
            f"{each.highest:,.0f}" + (" (all of it)" if each.highest > 0.93 * arguments.ramp * each.shop.rate else ""),
            f"{part.told.batch_size:.1f}", f"{each.row_seconds * 1e3:.3f}", each.shop.published,
        )  # fmt: skip
    console.print(table)
    for each in figures:
        if each.shop.items == SHOPS["fashion"].items:
            for name in ("e-commerce", "platform"):
                larger = SHOPS[name]
                cells = larger.items * larger.dim / (each.shop.items * each.shop.dim)
                busy = each.row_seconds * cells * larger.rate
                console.print(
                    f"On paper, not run: {larger.name} with {each.network} is {cells:.0f} times Fashion's table; a row "
                    f"would take {each.row_seconds * cells * 1e3:.1f} ms, {larger.rate:,.0f}/s {busy:.1f} engines "
                    f"like this machine's, fully busy (published: {larger.published}).",
                    highlight=False,
                )
    console.print(f"Reports: {arguments.reports}")
    return 0 if all(each.meets for each in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
