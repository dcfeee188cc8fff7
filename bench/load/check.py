"""Is one revision slower than another: `just bench-check main`, or `just bench-check v1 v2`.

Both serve at once, each from a separate worktree in the present environment. The same closed loop loads them in turn,
in an order that flips each round. A round gives one ratio of calls/s and one of the server's CPU a call. The report has
their median and spread, and for the CPU a call the 95 % interval of the median.

With `--rate` calls are offered at that rate, whether they are answered or not: above the capacity this compares what an
overloaded server still answers, and what a call costs it, answered or refused. `--leaving` and `--hurried` are shares
of the callers that cancel after 5 ms, or give 2 ms; the calls/s are those of the others.

An old revision may refuse a model of today's export. Then give `--model` a file that both can read: `git show
OLD:weights/10_model.onnx > /tmp/model.onnx`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from bench import facts
from bench.figures import kept, spread
from bench.load.plan import Method, Phase, Plan
from bench.load.run import run, warm_up
from bench.load.scenarios import model
from bench.serving import Server, serving
from recommender.settings.network import Edge


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """A worktree of the revision; "." means the files of the working tree."""
    if revision == ".":
        yield facts.ROOT
        return
    command = ["git", "-C", str(facts.ROOT), "worktree"]
    subprocess.run([*command, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*command, "remove", "--force", str(folder)], check=True)


def one(server: Server, plan: Plan) -> tuple[float, float]:
    """Calls/s and seconds of the server's CPU a call, in one round."""
    before = server.cpu_seconds()
    done = run(plan)
    whole = done.whole()
    if whole.failed and not plan.open_loop:
        raise RuntimeError(f"{whole.failed} of {whole.requests} calls failed")
    return whole.answered, (server.cpu_seconds() - before) / len(done.outcomes.sent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="main", help="revision to compare with")
    parser.add_argument("head", nargs="?", default=".", help="the other; by default the files as they are")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved pairs")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round on one of them")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.0, help="calls/s to offer, instead of so many in flight")
    parser.add_argument("--leaving", type=float, default=0.0, help="share of callers that cancel after 5 ms")
    parser.add_argument("--hurried", type=float, default=0.0, help="share of callers that give 2 ms")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--model", type=Path, help="model file that both serve; built if not given")
    parser.add_argument("--items", type=int, default=10_000, help="catalogue of the model")
    parser.add_argument("--dim", type=int, default=32, help="size of its embeddings")
    parser.add_argument("--network", default="reference", help="sasrec and gru4rec too")
    parser.add_argument("--edge", default="grpc", choices=get_args(Edge))
    parser.add_argument("--method", default="unary", choices=get_args(Method))
    parser.add_argument("--least", type=float, default=0.98, help="share of the first's CPU a call that is to be kept")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if the median is below --least")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = arguments.model or model(arguments.items, arguments.dim, arguments.network)
        settings = {"RECOMMENDER_EDGE": arguments.edge}
        servers = []
        for number, revision in enumerate((arguments.base, arguments.head)):
            tree = stack.enter_context(checked_out(revision, Path(folder, str(number))))
            servers.append(stack.enter_context(serving("--model", str(path.absolute()), settings=settings, cwd=tree)))
        rate, in_flight = arguments.rate, 0 if arguments.rate else arguments.in_flight
        phases = (Phase(arguments.seconds, rate, rate, in_flight),)
        plans = [
            Plan(
                each.target, phases, arguments.method, connections=arguments.connections, items=arguments.items,
                leaving=arguments.leaving, hurried=arguments.hurried, hurry_ms=2.0,
            )
            for each in servers
        ]  # fmt: skip
        for plan in plans:
            warm_up(plan)
        rounds: list[dict[int, tuple[float, float]]] = []
        for number in range(arguments.rounds):
            order = (0, 1) if number % 2 else (1, 0)
            rounds.append({place: one(servers[place], plans[place]) for place in order})
    table = Table("revision", "calls/s, median [least … most]", "µs CPU a call")
    for place, name in enumerate((arguments.base, arguments.head)):
        table.add_row(
            name, spread([each[place][0] for each in rounds], ",.0f"), spread([each[place][1] * 1e6 for each in rounds])
        )
    shares = [each[1][0] / each[0][0] for each in rounds]
    cpu = [each[1][1] / each[0][1] for each in rounds]
    table.add_row("share of the first", spread(shares), spread(cpu))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    keeps = [1 / each for each in cpu]
    console.print(f"first's CPU a call ÷ the second's: {kept(keeps, arguments.least)}", highlight=False, soft_wrap=True)
    return 1 if arguments.strict and statistics.median(keeps) < arguments.least else 0


if __name__ == "__main__":
    sys.exit(main())
