"""Compare the alternatives that users have, with the same model on the same machine: `just bench-peers`.

PyTriton (Triton with its Python backend), MLServer, Ray Serve, BentoML, LitServe and mosec run in separate environments
that uv makes from PyPI, once with the settings of their documentation's example and once with limits equal to ours. A
naive unbatched grpc.aio servicer and `recommender serve` with either edge complete the list. All must answer the same
history with the same ids in the same order; others are not measured. One server runs at a time, because some take CPU
while idle. In each round, with another history, each is started and loaded with a fixed number of calls in flight. Then
come 25, 50 and 80 % of the slowest one's rate, then, if it can, other fixed rates. h2load (Debian: nghttp2-client)
sends the calls. Deduplication is off, the default.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import facts
from bench.figures import interval, spread
from bench.load.scenarios import model
from bench.peers.hosted import HISTORY, Hosted, Unavailable, hosted
from bench.peers.load import Seen, ask
from bench.peers.rows import PEERS, Row, interpreter, rows
from bench.serving import free_port

SHARES = (0.25, 0.5, 0.8)
MODELS = ((10_000, 32), (100_000, 64))
WARMING_CALLS, WARMING_IN_FLIGHT = 200, 16
FIRST_CALLS = 200
LEAST_CALLS = 64


@dataclass
class Measured:
    """A row under load, and all that was seen of it."""

    row: Row
    python: str
    capacity: float
    """A first look, from which the numbers of calls and the rates follow."""
    idle: float
    """Cores in use while idle."""
    saturated: list[Seen] = field(default_factory=list)
    at: dict[float, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    """By calls a second."""
    memory: list[int] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Calls without an answer, of all runs."""
        return sum(seen.failed for seen in (*self.saturated, *(one for seen in self.at.values() for one in seen)))


@contextmanager
def up(row: Row, python: str, path: Path) -> Iterator[Hosted]:
    """The row's server on a free port, warmed by some calls. Raises Unavailable."""
    port = free_port()
    with hosted(row.peer.command(python, port), row.environment(path, port), port, row.peer.wire) as server:
        ask(server, HISTORY, WARMING_CALLS, WARMING_IN_FLIGHT)
        yield server


def first_look(
    wanted: Sequence[tuple[Row, str]], path: Path, arguments: argparse.Namespace, progress: Progress
) -> tuple[list[Measured], list[str]]:
    """Start each alone; returns the reasons of those that cannot be compared: no start, or other ids."""
    bar = progress.add_task("first look", total=len(wanted))
    found: list[Measured] = []
    missing: list[str] = []
    agreed: list[int] = []
    for row, python in wanted:
        try:
            with up(row, python, path) as server:
                ids, _ = row.peer.wire.ask(server.port, HISTORY)
                agreed = agreed or ids
                if ids == agreed:
                    rate = ask(server, HISTORY, FIRST_CALLS, arguments.in_flight).rate
                    rate = ask(server, HISTORY, max(FIRST_CALLS, round(0.5 * rate)), arguments.in_flight).rate
                    found.append(Measured(row, python, rate, idle(server)))
                else:
                    missing.append(f"{row.title}: it answers {ids}, {found[0].row.name} {agreed}")
        except Unavailable as error:
            missing.append(f"{row.title}: {error}")
        progress.advance(bar)
    return found, missing


def measure(
    rows: Sequence[Measured], path: Path, items: int, arguments: argparse.Namespace, progress: Progress
) -> tuple[list[float], list[float]]:
    """Measure all of them; returns the rates for all, and those for servers that can answer them."""
    slowest = min(each.capacity for each in rows)
    for_all = [] if arguments.saturated else [share * slowest for share in SHARES]
    for_some = [] if arguments.saturated else sorted(set(arguments.rates))
    drawn = random.Random(1)
    bar = progress.add_task(f"{items:,} items", total=len(rows) * arguments.rounds)
    for number in range(arguments.rounds):
        history = [drawn.randrange(items) for _ in HISTORY]
        for each in rows if number % 2 else [*reversed(rows)]:
            with up(each.row, each.python, path) as server:
                calls = arguments.calls or max(LEAST_CALLS, round(arguments.seconds * each.capacity))
                each.saturated.append(ask(server, history, calls, arguments.in_flight))
                for rate in (*for_all, *(rate for rate in for_some if rate <= SHARES[-1] * each.capacity)):
                    calls = max(LEAST_CALLS, round(arguments.seconds * rate))
                    each.at[rate].append(ask(server, history, calls, arguments.in_flight, rate))
                each.memory.append(server.memory_bytes())
            progress.advance(bar)
    return for_all, for_some


def idle(server: Hosted) -> float:
    """Cores in use while idle."""
    before, began = server.cpu_seconds(), time.monotonic()
    time.sleep(1.0)
    return (server.cpu_seconds() - before) / (time.monotonic() - began)


Cells = list[list[str]]


def at_saturation(rows: Sequence[Measured]) -> Cells:
    title = f"× {rows[0].row.name}"
    cells = [["server", "calls/s", title, "95 %", "p50 ms", "p99 ms", "CPU µs a call", "cores idle", "MiB", "failed"]]
    for each in rows:
        of = each.saturated
        shares = [one.rate / first.rate for one, first in zip(of, rows[0].saturated, strict=True)]
        cells.append([
            each.row.title, spread([one.rate for one in of], ",.0f"), spread(shares),
            "{:.2f} … {:.2f}".format(*interval(shares)),
            *(spread([one.quantile(q) for one in of]) for q in (0.5, 0.99)),
            spread([one.cpu * 1e6 for one in of], ",.0f"), f"{each.idle:.2f}",
            f"{statistics.median(each.memory) / 2**20:,.0f}", f"{each.failed:,}",
        ])  # fmt: skip
    return cells


def at_rates(rows: Sequence[Measured], rates: Sequence[float]) -> Cells:
    """Servers without a measurement at these rates are left out."""
    cells = [["server", *(f"{q} ms at {rate:,.0f}/s" for rate in rates for q in ("p50", "p99"))]]
    cells.extend(
        [
            each.row.title,
            *(
                spread([one.quantile(q) for one in each.at[rate]]) if rate in each.at else "—"
                for rate in rates
                for q in (0.5, 0.99)
            ),
        ]
        for each in rows
        if any(rate in each.at for rate in rates)
    )
    return cells


def markdown(cells: Cells) -> str:
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]]) + "\n"


def shown(cells: Cells, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(cells[0]):
        table.add_column(name, no_wrap=True, justify="left" if number == 0 else "right")
    for line in cells[1:]:
        table.add_row(*line)
    return table


def compare(items: int, dim: int, pythons: dict[str, str], arguments: argparse.Namespace, console: Console) -> str:
    """Compare all servers with one model; returns a page's text. Servers not compared are listed with the reason."""
    path = model(items, dim)
    wanted = [(row, python) for name, python in pythons.items() for row in rows(name, arguments.wait_ms)]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        found, missing = first_look(wanted, path, arguments, progress)
        for each in missing:
            console.print(f"not compared: {each}", highlight=False, markup=False)
        if not found:
            raise SystemExit("Nothing could be compared; the reasons are above.")
        for_all, for_some = measure(found, path, items, arguments, progress)
    title = f"{items:,} × {dim}, {arguments.in_flight} calls in flight, {arguments.rounds} rounds"
    tables = [(title, at_saturation(found))]
    if for_all:
        shares = ", ".join(f"{share:.0%}" for share in SHARES)
        tables.append((f"{items:,} × {dim}, at {shares} of the slowest's calls/s", at_rates(found, for_all)))
    if for_some:
        within = f"of servers that answered {1 / SHARES[-1]:.2f} × as many at first"
        tables.append((f"{items:,} × {dim}, at fixed rates, {within}", at_rates(found, for_some)))
    said = ""
    for heading, cells in tables:
        console.print(shown(cells, heading))
        said += f"{heading}:\n\n{markdown(cells)}\n"
    return said + "".join(f"Not compared: {each}\n\n" for each in missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help=f"some of {','.join(PEERS)}; all by default. Shares are of the first.")
    parser.add_argument(
        "--models", nargs="+", default=["x".join(map(str, each)) for each in MODELS], metavar="ITEMSxDIM"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, help="of each run at saturation; by default what --seconds takes")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long a run lasts")
    parser.add_argument("--rates", type=float, nargs="*", default=[1000.0, 2000.0],
                        help="calls a second that those are asked at who answer a quarter more")  # fmt: skip
    parser.add_argument("--saturated", action="store_true", help="measure at saturation only")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--wait-ms", type=float, default=2.0, help="that a batch waits, where limits are equal")
    parser.add_argument("--quick", action="store_true", help="one round of half a second: does everything run?")
    parser.add_argument("--environments", type=Path, default=Path("~/.cache/recommender-peers").expanduser(),
                        help="folder of the peers' environments")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the tables, too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.5
    names = arguments.peers.split(",") if arguments.peers else list(PEERS)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    console = Console(width=None if sys.stdout.isatty() else 220)
    told = facts.machine()  # its load is what others did before
    said, pythons = "", {}
    for name in names:
        try:
            pythons[name] = interpreter(name, arguments.environments)
        except Unavailable as error:
            said += f"Not compared: {name}: {error}\n\n"
            console.print(f"not compared: {name}: {error}", highlight=False, markup=False)
    for each in arguments.models:
        items, dim = map(int, each.split("x"))
        said += compare(items, dim, pythons, arguments, console) + "\n"
        if arguments.markdown:
            page = said + "".join(f"- {name}: {value}\n" for name, value in told.items())
            arguments.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
