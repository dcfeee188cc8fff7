"""Does the server hold its promises under hard load: `just bench-scenarios`, or some scenarios by name.

Each scenario starts a new server, and checks what must hold. Rates are relative to this machine: `capacity` is the most
requests/s that a closed loop gets answered. Bounds are numbers of engine runs, or ratios to a calm run on the same
machine, so they mean the same on a slow one. Exit code 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from rich.console import Console

from bench import facts
from bench.load import report
from bench.load.plan import GOOD, HURRIED, LEAVING, SLOW, Phase, Plan
from bench.load.run import Part, Run, run, warm_up
from bench.serving import Server, serving

MORE = 5.0
BACKLOG = 1024
"""How many wait at most, where no setting says otherwise."""
GOODPUT = 0.9
"""Least share of the capacity that overload must leave."""
FRESH = 0.95
"""Least share of regular callers that must be answered during a storm."""


@dataclass(frozen=True)
class Options:
    """Command-line options of all scenarios."""

    items: int
    dim: int
    seconds: float
    objective_ms: float
    console: Console
    settings: Mapping[str, str]
    """Of the server, by the names of the environment."""
    coarse: str | None


@dataclass
class Result:
    """A scenario's result: sentences and whether they hold, and the run that its report shows."""

    shown: Run
    held: list[tuple[str, bool]] = field(default_factory=list)

    def must(self, said: str, *, holds: bool) -> None:
        """Note what must hold."""
        self.held.append((said, holds))


@cache
def model(items: int, dim: int, network: str = "reference", coarse: str | None = None) -> Path:
    """A model of random weights, exported once for each state of the code; `coarse` is what the command has for it."""
    name = f"{network}-{items}x{dim}" + (f"-{coarse}" if coarse else "")
    path = Path(tempfile.gettempdir(), "recommender-bench", name, "10_model.onnx")
    card = path.with_name("10_model.card.json")
    written = max(file.stat().st_mtime for file in Path(facts.ROOT, "recommender", "export").rglob("*.py"))
    if not card.exists() or card.stat().st_mtime < written:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "recommender", "export", "--network", network, "--items", str(items),
                   "--dim", str(dim), "--num-recommendations", "10", "--output", str(path),
                   *(("--coarse", coarse) if coarse else ())]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, cwd=facts.ROOT)
    return path


@contextmanager
def loaded(options: Options) -> Iterator[tuple[Server, Plan]]:
    """A warm server of the model, and a plan that asks it once a second."""
    path = model(options.items, options.dim, coarse=options.coarse)
    with serving("--model", str(path), settings=options.settings) as server:
        plan = Plan(server.target, (Phase(options.seconds, 1.0, 1.0),), items=options.items)
        warm_up(plan)
        yield server, plan


def at_rate(plan: Plan, rate: float) -> Plan:
    """The same at another constant rate."""
    return replace(plan, phases=(Phase(plan.seconds, rate, rate),))


def capacity(server: Server, plan: Plan, options: Options, in_flight: int = 128) -> Part:
    """The most that a closed loop gets answered, twice the largest batch under way."""
    closed = replace(plan, phases=(Phase(plan.seconds, in_flight=in_flight),))
    return run(closed, metrics=server.metrics, console=options.console, title="capacity").whole()


def steady(options: Options) -> Result:
    """Half the capacity for a while: no call fails, and p99 stays within the objective."""
    with loaded(options) as (server, plan):
        most = capacity(server, plan, options).answered
        done = run(at_rate(plan, most / 2), metrics=server.metrics, console=options.console, title="steady")
    whole, result = done.whole(), Result(done)
    result.must(f"nobody fails at {most / 2:,.0f}/s, half the capacity: {whole.failed} did", holds=whole.failed == 0)
    p99 = whole.quantile_of_all(0.99) * 1e3
    result.must(f"p99 {p99:,.1f} ms, at most {options.objective_ms:g}", holds=p99 <= options.objective_ms)
    return result


def ramp(options: Options) -> Result:
    """From a tenth of the capacity to above it: finds the highest rate that meets the objective; no answer is lost."""
    with loaded(options) as (server, plan):
        most = capacity(server, plan, options).answered
        rising = replace(plan, phases=(Phase(3 * options.seconds, most / 10, most * 1.3),))
        done = run(rising, metrics=server.metrics, console=options.console, title="ramp")
    highest, result = within(done, options.objective_ms), Result(done)
    result.must(
        f"the highest rate within p99 {options.objective_ms:g} ms is {highest:,.0f}/s, {highest / most:.0%} of the "
        f"capacity of {most:,.0f}/s; at least half",
        holds=highest >= most / 2,
    )
    lost = done.statuses().get("no answer", 0)
    result.must(f"everybody is told something: {lost} were not", holds=lost == 0)
    return result


def within(done: Run, objective_ms: float, q: float = 0.99) -> float:
    """The rate up to which every second of a ramp met the objective."""
    highest = 0.0
    for part in done.slices():
        if part.quantile_of_all(q) * 1e3 > objective_ms:
            break
        highest = part.offered
    return highest


def overload(options: Options) -> Result:
    """Five times the capacity: the goodput stays, and admitted callers do not wait long."""
    with loaded(options) as (server, plan):
        calm = capacity(server, plan, options)
        done = run(at_rate(plan, MORE * calm.answered), metrics=server.metrics, console=options.console, title="5 ×")
    backlog = int(options.settings.get("RECOMMENDER_MAX_BACKLOG", BACKLOG))
    whole, result = done.whole(), Result(done)
    # The first second fills the backlog, so goodput is what is answered from then on.
    later = done.part("after 1 s", 1.0, options.seconds - 1.0)
    goodput = later.answered / calm.answered
    result.must(
        f"goodput {later.answered:,.0f}/s of the {later.offered:,.0f}/s offered is {goodput:.0%} of the capacity of "
        f"{calm.answered:,.0f}/s; at least {GOODPUT:.0%}",
        holds=goodput >= GOODPUT,
    )
    wait = backlog / calm.answered
    p99 = whole.quantile(0.99)
    result.must(
        f"p99 of who is answered is {p99 * 1e3:,.0f} ms; at most the {wait * 1e3:,.0f} ms of a full backlog and "
        "as much again",
        holds=p99 <= 2 * wait,
    )
    statuses = done.statuses()
    known = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    # CANCELLED comes from gRPC, probably for calls that it sheds before the server sees them: then gRPC was the limit.
    result.must(f"the rest is refused by the server itself: {statuses}", holds=set(statuses) <= known)
    return result


def beside(options: Options, title: str, kind: int, **storm: float) -> Result:
    """Four tenths of the capacity as most ask, and as much again of callers that misbehave."""
    with loaded(options) as (server, plan):
        most = capacity(server, plan, options).answered
        calm = run(at_rate(plan, 0.4 * most), metrics=server.metrics, console=options.console, title="calm").whole()
        stormy = replace(at_rate(plan, 0.8 * most), **storm)  # type: ignore[arg-type]
        done = run(stormy, metrics=server.metrics, console=options.console, title=title)
        after = run(at_rate(plan, most / 4), metrics=server.metrics, console=options.console, title="after").whole()
    whole, bad, result = done.whole(GOOD), done.whole(kind), Result(done)
    share = 1 - whole.error_rate
    result.must(
        f"{bad.requests:,} callers misbehave; of the {whole.requests:,} others {share:.1%} are answered, at least "
        f"{FRESH:.0%} (calm: {1 - calm.error_rate:.1%})",
        holds=bad.requests > 0 and share >= FRESH,
    )
    result.must(f"nobody is left without a status: {done.statuses()}", holds="no answer" not in done.statuses())
    result.must(f"after the storm nobody fails: {after.failed} of {after.requests:,} did", holds=after.failed == 0)
    return result


def cancel_storm(options: Options) -> Result:
    """Half of all callers cancel within 5 ms: the others are answered, and afterwards all is as before."""
    return beside(options, "cancel storm", LEAVING, leaving=0.5, leave_ms=5.0)


def deadline_storm(options: Options) -> Result:
    """Half of all callers give 2 ms: the others are answered, and afterwards all is as before."""
    return beside(options, "deadline storm", HURRIED, hurried=0.5, hurry_ms=2.0)


def slow_readers(options: Options) -> Result:
    """Connections that read no reply: the others do not notice, and the replies are there when they read at last."""
    with loaded(options) as (server, plan):
        most = capacity(server, plan, options).answered
        calm = run(at_rate(plan, most / 2), metrics=server.metrics, console=options.console, title="calm").whole()
        slow = replace(at_rate(plan, most / 2), slow=8, slow_calls=50)
        done = run(slow, metrics=server.metrics, console=options.console, title="slow readers")
    whole, readers, result = done.whole(), done.whole(SLOW), Result(done)
    result.must(f"of {whole.requests:,} others {whole.failed} fail", holds=whole.failed == 0)
    ratio = whole.quantile(0.5) / calm.quantile(0.5)
    result.must(f"their median latency is {ratio:.2f} of that without slow readers, at most 2", holds=ratio <= 2)
    good = readers.requests - readers.failed
    result.must(f"{good} of {readers.requests} replies are read in the end", holds=good == readers.requests)
    return result


SCENARIOS: dict[str, Callable[[Options], Result]] = {
    "steady": steady,
    "ramp": ramp,
    "overload": overload,
    "cancel-storm": cancel_storm,
    "deadline-storm": deadline_storm,
    "slow-readers": slow_readers,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of {', '.join(SCENARIOS)}")
    parser.add_argument("--items", type=int, default=10_000, help="catalogue of the model")
    parser.add_argument("--dim", type=int, default=32, help="size of its embeddings")
    parser.add_argument("--coarse", choices=["none", "int8"], help="see docs/models-export.md")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--objective-ms", type=float, default=50.0, help="p99 that steady and ramp are held to")
    parser.add_argument("--setting", action="append", default=[], metavar="RECOMMENDER_NAME=VALUE")
    parser.add_argument("--reports", type=Path, default=Path("bench-reports"), help="folder of the HTML reports")
    arguments = parser.parse_args()
    strange = sorted(set(arguments.names) - set(SCENARIOS))
    if strange:
        parser.error(f"no scenario {strange[0]!r}; there are {', '.join(SCENARIOS)}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    settings = dict(each.partition("=")[::2] for each in arguments.setting)
    options = Options(
        items=arguments.items,
        dim=arguments.dim,
        seconds=arguments.seconds,
        objective_ms=arguments.objective_ms,
        console=console,
        settings=settings,
        coarse=arguments.coarse,
    )
    told, all_hold = facts.machine(), True
    for name in arguments.names or SCENARIOS:
        result = SCENARIOS[name](options)
        path = arguments.reports / f"{name}.html"
        doc = (SCENARIOS[name].__doc__ or "").strip()
        report.save(path, report.html(result.shown, title=f"{name}: {doc}", facts=told, checks=result.held))
        console.print(f"[bold]{name}[/bold]: {doc}")
        console.print(report.table(report.parts(result.shown)))
        for said, holds in result.held:
            all_hold &= holds
            console.print(
                ("held: " if holds else "missed: ") + said, style="green" if holds else "red", highlight=False
            )
    console.print(f"Reports: {arguments.reports}")
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
