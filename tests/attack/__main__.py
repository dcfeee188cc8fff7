"""Attack a server as a client without a token would: `just attack`.

Starts a server of each edge on this machine and tries every attack on it, one after the other, while an honest caller
keeps calling. Exit code 1 if one of its calls failed, or if the server ended, grew beyond --most-mb, kept files open,
or did not stop within its grace while an attacker held all that it could.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from recommender.settings.network import Edge
from tests.attack.attacks import ATTACKS
from tests.attack.victim import Report, victim


async def attacked(edge: Edge, names: Sequence[str], *, size: float, most_mb: int, console: Console) -> list[Report]:
    """Try these attacks on a server of this edge; the last report is of its stop."""
    reports: list[Report] = []
    with tempfile.TemporaryDirectory() as folder:
        async with victim(edge, Path(folder), size=size, most_mb=most_mb) as server:
            for name in names:
                console.print(f"{edge}: {name}", style="dim")
                reports.append(await server.suffer(name, ATTACKS[name]))
            reports.append(await server.stop())
    return reports


def shown(edge: Edge, reports: Sequence[Report]) -> Table:
    """The reports as a table for people."""
    columns = ("attack", "what became of it", "s", "honest calls", "slowest ms", "grew MiB", "result")
    table = Table(*columns, title=f"attacks on the {edge} edge")
    for report in reports:
        table.add_row(
            report.attack,
            report.seen,
            f"{report.seconds:.1f}",
            str(report.honest),
            f"{1e3 * report.slowest:.0f}",
            str(report.grown),
            "; ".join(report.faults) or "held",
        )
    return table


def main() -> int:
    """Attack the edges that were asked for; the exit code says whether they held."""
    parser = argparse.ArgumentParser(prog="just attack", description=__doc__)
    parser.add_argument("--edge", choices=get_args(Edge), nargs="+", default=get_args(Edge))
    parser.add_argument("--only", choices=sorted(ATTACKS), nargs="+", default=list(ATTACKS))
    parser.add_argument("--size", type=float, default=1.0, help="scales the numbers of every attack")
    parser.add_argument("--most-mb", type=int, default=128, help="MiB that a server may grow by in one attack")
    options = parser.parse_args()
    # It warns of every write to a connection that the server has closed.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    console = Console(width=max(Console().width, 150))
    harmed = False
    for edge in options.edge:
        reports = asyncio.run(attacked(edge, options.only, size=options.size, most_mb=options.most_mb, console=console))
        console.print(shown(edge, reports))
        harmed |= any(report.faults for report in reports)
    return int(harmed)


if __name__ == "__main__":
    sys.exit(main())
