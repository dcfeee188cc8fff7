"""What would users pick instead, and what does it make of the same model on the same machine: `just bench-peers`.

PyTriton (Triton with its Python backend), MLServer, Ray Serve, BentoML, LitServe and mosec, each in an environment of
its own that uv makes from PyPI, once with the settings of its documentation's example and once with limits equal to
ours; a naive unbatched grpc.aio servicer; and `recommender serve` with either edge. All answer the same history with
the same ids, in the same order, or are not measured. All that start stay up, one is asked at a time, in interleaved
rounds with another history each: as fast as answers come with a fixed number in flight, then at 25, 50 and 80 % of
what the slowest answers. h2load (Debian: nghttp2-client) asks all of them. Deduplication is off, as it is by default.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import facts
from bench.peers.hosted import HISTORY, Hosted, Unavailable, hosted
from bench.peers.load import Seen, ask
from bench.peers.rows import PEERS, Row, interpreter, rows
from bench.scenarios import model
from bench.serving import free_port

SHARES = (0.25, 0.5, 0.8)
MODELS = ((10_000, 32), (100_000, 64))
FIRST_CALLS = 200
LEAST_CALLS = 64
STARTING = 3


@dataclass
class Measured:
    """A row under load, and all that was seen of it."""

    row: Row
    server: Hosted
    capacity: float = 0.0
    """A first look, from which the numbers of calls and the rates follow."""
    saturated: list[Seen] = field(default_factory=list)
    at: dict[float, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    memory: int = 0

    @property
    def failed(self) -> int:
        """Calls without an answer, of all runs."""
        return sum(seen.failed for seen in (*self.saturated, *(one for seen in self.at.values() for one in seen)))


def started(wanted: Sequence[tuple[Row, str]], path: Path, stack: ExitStack) -> tuple[list[Measured], list[str]]:
    """Start them all, and end them with the stack; who cannot be compared is told with the reason.

    Who answers other ids than the first is not compared.
    """

    def start(row: Row, python: str) -> Measured | Unavailable:
        port = free_port()
        own = ExitStack()
        owns.append(own)
        try:
            command = row.peer.command(python, port)
            server = own.enter_context(hosted(command, row.environment(path, port), port, row.peer.wire))
        except Unavailable as error:
            return error
        return Measured(row, server)

    def end() -> None:
        with ThreadPoolExecutor(max(1, len(owns))) as threads:
            list(threads.map(ExitStack.close, owns))

    owns: list[ExitStack] = []
    servers: list[Measured] = []
    missing: list[str] = []
    stack.callback(end)
    for row, _ in wanted:
        row.peer.wire.body(HISTORY)
    with ThreadPoolExecutor(STARTING) as threads:
        found = list(threads.map(start, *zip(*wanted, strict=True)))
    first: list[int] = []
    for (row, _), one in zip(wanted, found, strict=True):
        if isinstance(one, Unavailable):
            missing.append(f"{row.title}: {one}")
            continue
        ids, _ = row.peer.wire.ask(one.server.port, HISTORY)
        first = first or ids
        if ids == first:
            servers.append(one)
        else:
            missing.append(f"{row.title}: it answers {ids}, {servers[0].row.name} {first}")
    return servers, missing


def measure(servers: Sequence[Measured], items: int, arguments: argparse.Namespace, progress: Progress) -> list[float]:
    """Ask all of them, and return the fixed rates."""
    drawn = random.Random(1)
    history = [drawn.randrange(items) for _ in HISTORY]
    bar = progress.add_task(f"{items:,} items", total=len(servers) * (1 + arguments.rounds * (1 + len(SHARES))))
    in_flight = arguments.in_flight
    for each in servers:
        first = ask(each.server, history, FIRST_CALLS, in_flight)
        again = ask(each.server, history, max(FIRST_CALLS, round(0.5 * first.rate)), in_flight)
        each.capacity = again.rate
        progress.advance(bar)
    slowest = min(each.capacity for each in servers)
    rates = [share * slowest for share in SHARES]
    for number in range(arguments.rounds):
        history = [drawn.randrange(items) for _ in HISTORY]
        turn = servers if number % 2 else [*reversed(servers)]
        for each in turn:
            calls = arguments.calls or max(LEAST_CALLS, round(arguments.seconds * each.capacity))
            each.saturated.append(ask(each.server, history, calls, in_flight))
            progress.advance(bar)
        for share, rate in zip(SHARES, rates, strict=True):
            for each in turn:
                calls = max(LEAST_CALLS, round(arguments.seconds * rate))
                each.at[share].append(ask(each.server, history, calls, in_flight, rate))
                progress.advance(bar)
    for each in servers:
        each.memory = each.server.memory_bytes()
    return rates


def idle(servers: Sequence[Measured]) -> float:
    """Cores that all servers together take when nobody asks."""
    before, began = sum(each.server.cpu_seconds() for each in servers), time.monotonic()
    time.sleep(1.0)
    return (sum(each.server.cpu_seconds() for each in servers) - before) / (time.monotonic() - began)


def spread(values: Sequence[float]) -> str:
    return _told(values, ",.3g")


def whole(values: Sequence[float]) -> str:
    return _told(values, ",.0f")


def _told(values: Sequence[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return f"{middle} [{min(values):{form}} … {max(values):{form}}]" if len(values) > 1 else middle


Cells = list[list[str]]


def at_saturation(servers: Sequence[Measured]) -> Cells:
    cells = [["server", "calls/s", f"× {servers[0].row.name}", "p50 ms", "p99 ms", "CPU µs a call", "MiB", "failed"]]
    for each in servers:
        of = each.saturated
        shares = [one.rate / first.rate for one, first in zip(of, servers[0].saturated, strict=True)]
        cells.append([
            each.row.title, whole([one.rate for one in of]), spread(shares),
            *(spread([one.quantile(q) for one in of]) for q in (0.5, 0.99)),
            whole([one.cpu * 1e6 for one in of]), f"{each.memory / 2**20:,.0f}", f"{each.failed:,}",
        ])  # fmt: skip
    return cells


def at_rates(servers: Sequence[Measured], rates: Sequence[float]) -> Cells:
    cells = [["server", *(f"{q} ms at {rate:,.0f}/s" for rate in rates for q in ("p50", "p99"))]]
    cells.extend(
        [
            each.row.title,
            *(spread([one.quantile(q) for one in each.at[share]]) for share in SHARES for q in (0.5, 0.99)),
        ]
        for each in servers
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
    """One model behind all of them; what a page says of it. Who cannot be compared is told with the reason."""
    path = model(items, dim)
    wanted = [(row, python) for name, python in pythons.items() for row in rows(name, arguments.wait_ms)]
    with ExitStack() as stack:
        servers, missing = started(wanted, path, stack)
        for each in missing:
            console.print(f"not compared: {each}", highlight=False, markup=False)
        if not servers:
            raise SystemExit("Nothing could be compared; the reasons are above.")
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            busy = idle(servers)
            rates = measure(servers, items, arguments, progress)
    title = f"{items:,} × {dim}, {arguments.in_flight} calls in flight, {arguments.rounds} rounds"
    fixed = f"{items:,} × {dim}, at {', '.join(f'{share:.0%}' for share in SHARES)} of the slowest's calls/s"
    tables = ((title, at_saturation(servers)), (fixed, at_rates(servers, rates)))
    said = ""
    for heading, cells in tables:
        console.print(shown(cells, heading))
        said += f"{heading}:\n\n{markdown(cells)}\n"
    console.print(f"All {len(servers)} servers took {busy:.2f} cores while nobody asked.", highlight=False)
    said += f"All {len(servers)} servers took {busy:.2f} cores while nobody asked.\n"
    return said + "".join(f"\nNot compared: {each}\n" for each in missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help=f"some of {','.join(PEERS)}; all by default. Shares are of the first.")
    parser.add_argument(
        "--models", nargs="+", default=["x".join(map(str, each)) for each in MODELS], metavar="ITEMSxDIM"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, help="of each run at saturation; by default what --seconds takes")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long a run lasts")
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
            told = "".join(f"- {name}: {value}\n" for name, value in facts.machine().items())
            arguments.markdown.write_text(said + told, encoding="utf-8")


if __name__ == "__main__":
    main()
