"""Load a server and measure it: `just bench`.

Starts `recommender serve`, or loads the server at --target. --rate sends at constant rates, one phase each, whether or
not replies arrive; with --ramp-to the rate rises. --in-flight keeps that many requests in flight (closed loop). Prints
a table and writes an HTML report. Exit codes: 0, 1 if --p99-ms or --error-rate is missed, 2 for invalid arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from rich.console import Console

from bench import facts
from bench.load import histories, report
from bench.load.plan import Phase, Plan
from bench.load.run import Run, run, warm_up
from bench.serving import Server, serving
from recommender.client import SyncClient

DEFAULT_RATES = (250.0, 500.0, 1000.0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="just bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    server = made.add_argument_group("server")
    server.add_argument("--target", help="host:port of a running server; by default one is started")
    server.add_argument("--metrics", help="address of its metrics, http://…/metrics")
    server.add_argument("--token", default="", help="sent with every call")
    server.add_argument("--model", type=Path, help="model file for the server that is started")
    server.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of that server, RECOMMENDER_…"
    )
    load = made.add_argument_group("load")
    load.add_argument("--rate", type=float, nargs="+", help=f"requests/s, open loop; by default {DEFAULT_RATES}")
    load.add_argument("--ramp-to", type=float, help="rise from --rate to this, instead of steps")
    load.add_argument("--in-flight", type=int, nargs="+", help="closed loop: so many requests under way")
    load.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    load.add_argument("--arrivals", choices=("even", "poisson"), default="even")
    load.add_argument("--method", choices=("unary", "batch", "stream"), default="unary")
    load.add_argument("--rows", type=int, default=64, help="histories of a batch call, which is one request")
    load.add_argument("--connections", type=int, default=4)
    load.add_argument("--streams", type=int, default=8, help="open streams, for --method stream")
    load.add_argument("--timeout-ms", type=float, default=5000.0, help="deadline of a request")
    load.add_argument("--generator", choices=("own", "k6"), default="own", help="own costs far less CPU a call than k6")
    asked = made.add_argument_group("histories")
    asked.add_argument("--histories", type=Path, help="a file, one a line; by default drawn by ETUDE's power laws")
    asked.add_argument("--items", type=int, help="catalogue to draw from; by default the served model's")
    asked.add_argument("--seed", type=int, default=1)
    end = made.add_argument_group("end")
    end.add_argument("--p99-ms", type=float, help="what each phase must stay within, failed requests counting as late")
    end.add_argument("--error-rate", type=float, help="share of requests that may fail")
    end.add_argument("--report", type=Path, default=Path("bench-report.html"))
    return made


def phases(arguments: argparse.Namespace) -> tuple[Phase, ...]:
    """Phases from the options, in order. Raises ValueError."""
    seconds = arguments.seconds
    if arguments.in_flight:
        if arguments.rate or arguments.ramp_to:
            raise ValueError("--in-flight is a closed loop, --rate and --ramp-to an open one: give one of them")
        found = tuple(Phase(seconds, in_flight=number) for number in arguments.in_flight)
    elif arguments.ramp_to:
        start = arguments.rate or [1.0]
        if len(start) > 1:
            raise ValueError("--ramp-to rises from one --rate")
        found = (Phase(seconds, start[0], arguments.ramp_to),)
    else:
        found = tuple(Phase(seconds, rate, rate) for rate in arguments.rate or DEFAULT_RATES)
    if seconds <= 0 or any(phase.rate <= 0 and phase.in_flight <= 0 for phase in found):
        raise ValueError("rates, numbers in flight and seconds must be more than 0")
    return found


def plan(arguments: argparse.Namespace, target: str) -> Plan:
    """Return the plan of the options, by a query of the served model. Raises ValueError and grpc.RpcError."""
    with SyncClient(target, token=arguments.token or None) as client:
        model = client.get_model(timeout=10)
    if arguments.histories is not None:
        histories.read(arguments.histories)  # so that what is wrong with it is said before anything is sent
    return Plan(
        target, phases(arguments), arguments.method, arguments.rows, arguments.connections, arguments.streams,
        arguments.timeout_ms / 1e3, arguments.arrivals, arguments.token, arguments.items or model.items,
        file=str(arguments.histories.resolve()) if arguments.histories else "", seed=arguments.seed,
    )  # fmt: skip


def checks(done: Run, p99_ms: float | None, error_rate: float | None) -> list[tuple[str, bool]]:
    """Each threshold on each phase, and whether it was met."""
    found = []
    for part in done.phases():
        if p99_ms is not None:
            p99 = part.quantile_of_all(0.99) * 1e3
            found.append((f"{part.name}: p99 {p99:,.1f} ms, asked for {p99_ms:g} ms", p99 <= p99_ms))
        if error_rate is not None:
            said = f"{part.name}: {part.error_rate:.3%} failed, asked for {error_rate:.3%}"
            found.append((said, part.error_rate <= error_rate))
    return found


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[Server | None]:
    """A new server, unless one already runs."""
    if arguments.target:
        yield None
        return
    settings = dict(each.partition("=")[::2] for each in arguments.setting)
    strange = [name for name in settings if not name.startswith("RECOMMENDER_")]
    if strange:
        raise ValueError(f"--setting takes RECOMMENDER_NAME=VALUE, not {strange[0]!r}")
    options = ("--model", str(arguments.model)) if arguments.model else ()
    with serving(*options, settings=settings) as server:
        yield server


def main() -> int:
    arguments = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    told = facts.machine()
    with ExitStack() as stack:
        try:
            phases(arguments)
            server = stack.enter_context(served(arguments))
            target = server.target if server else arguments.target
            wanted = plan(arguments, target)
            told["server"] = " ".join(server.command[1:]) if server else f"running already at {target}"
            warm_up(wanted)
            metrics = server.metrics if server else arguments.metrics
            done = run(wanted, metrics=metrics, generator=arguments.generator, console=console)
        except grpc.RpcError as error:
            console.print(f"The server at {arguments.target or 'this machine'} does not answer: {error}", style="red")
            return 2
        except (OSError, ValueError, RuntimeError) as error:
            console.print(str(error), style="red")
            return 2
    held = checks(done, arguments.p99_ms, arguments.error_rate)
    title = f"recommender under load: {', '.join(phase.name for phase in wanted.phases)}"
    report.save(arguments.report, report.html(done, title=title, facts=told, checks=held, limit_ms=arguments.p99_ms))
    console.print(report.table(report.parts(done)))
    for note in report.notes(done):
        console.print(note, style="dim", highlight=False)
    console.print("How requests ended: " + ", ".join(f"{count:,} {name}" for name, count in done.statuses().items()))
    for said, met in held:
        console.print(("held: " if met else "missed: ") + said, style="green" if met else "red", highlight=False)
    console.print(f"Report: {arguments.report}")
    return 0 if all(met for _, met in held) else 1


if __name__ == "__main__":
    sys.exit(main())
