"""Compare a bulk job on Ray with one process: a local cluster with an actor on each CPU, and one process on all.

A cluster takes half a minute to start, whatever the rows. So both ways score a short and a long input in each round.
What counts are the rows that the long one has more, by the time and by the CPU that it takes more. The CPU is that of
all processes of a way, Ray's own among them. 10,000 × 32, histories of 20, Parquet to Parquet. `just bench-bulk-ray`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench.facts import ROOT, machine
from bench.figures import kept, spread
from bench.questions import many
from bench.questions.bulk import input_of
from recommender.engine.machine import available_cpus

FILE_ROWS = 500_000
LOOK_SECONDS = 0.25
INSTALL_SECONDS = 600.0
RUN_SECONDS = 3600.0
LEAST = 0.9
ONE, RAY = "one process", "Ray, an actor on each CPU"
WAYS = {ONE: (), RAY: ("--on", "ray", "--threads", "1")}


@dataclass(frozen=True)
class Run:
    """Cost of one run: seconds from start to end by the job's own count, and CPU seconds of its processes."""

    rows: int
    seconds: float
    cpu: float


@dataclass(frozen=True)
class Marginal:
    """Rows a second and CPU microseconds a row, of the rows that a long run has more than a short one."""

    rate: float
    cpu: float

    @classmethod
    def of(cls, short: Run, long: Run) -> Marginal:
        """The figures of two runs of one way."""
        rows = long.rows - short.rows
        return cls(rows / (long.seconds - short.seconds), (long.cpu - short.cpu) / rows * 1e6)


def environment(folder: Path) -> Path:
    """The `recommender` of an environment with Ray that uv makes; one that is there already is brought up to date."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--python", sys.executable, str(folder)], check=True, timeout=INSTALL_SECONDS)
    install = ["uv", "pip", "install", "--quiet", "--python", str(python), "--editable", f"{ROOT}[ray]"]
    subprocess.run(install, check=True, timeout=INSTALL_SECONDS)
    return python.with_name("recommender")


def inputs(folder: Path, rows: int) -> Path:
    """A folder of as many links to one file as the rows need."""
    source = folder / "rows.parquet"
    if not source.exists():
        input_of(source, FILE_ROWS, 10_000)
    made = folder / f"in-{rows}"
    made.mkdir()
    for number in range(rows // FILE_ROWS):
        (made / f"{number:05}.parquet").symlink_to(source)
    return made


def run(program: Path, where: Path, output: Path, more: Sequence[str]) -> Run:
    words = ["score", str(many.MODEL), "--input", str(where), "--output", str(output), "--json", *more]
    # Else Ray's workers repeat the `uv run` that this may run in, and have another environment.
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            [str(program), *words], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:
            cpu = _cpu_until_it_ends(psutil.Process(process.pid))
            said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}\n{errors.read()[-2000:]}")
    summary = json.loads(said)
    return Run(summary["rows"], summary["seconds"], cpu)


def _cpu_until_it_ends(process: psutil.Process) -> float:
    """CPU seconds of a process and of all its descendants, by samples; time after the last sample is missed."""
    spent: dict[tuple[int, float], float] = {}
    end = time.monotonic() + RUN_SECONDS
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            process.kill()
        try:
            for each in (process, *process.children(recursive=True)):
                times = each.cpu_times()
                spent[each.pid, each.create_time()] = times.user + times.system
        except psutil.NoSuchProcess:
            continue
        time.sleep(LOOK_SECONDS)
    return sum(spent.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help=f"of the long input, a multiple of {FILE_ROWS:,}")
    parser.add_argument("--short-rows", type=int, default=1_000_000, help="of the short one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environment", type=Path, default=Path.home() / ".cache" / "recommender-bench" / "bulk-ray")
    options = parser.parse_args()
    program = environment(options.environment)
    seen: dict[str, list[tuple[Run, Run]]] = {name: [] for name in WAYS}
    facts = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long = inputs(folder, options.short_rows), inputs(folder, options.rows)
        for round_ in range(options.rounds):
            for way, more in WAYS.items():
                runs = [
                    run(program, where, folder / f"out-{where.name}-{way}-{round_}", more) for where in (short, long)
                ]
                seen[way].append((runs[0], runs[1]))
    show(facts, seen)


def show(facts: dict[str, str], seen: dict[str, list[tuple[Run, Run]]]) -> None:
    console = Console(width=120)
    for fact, value in facts.items():
        console.print(f"{fact}: {value}", highlight=False)
    (short, long), *_ = seen[ONE]
    columns = (
        "",
        "rows/s, marginal",
        "CPU µs a row, marginal",
        "CPUs busy",
        f"s of {long.rows:,} rows",
        "s before rows",
    )
    table = Table(*columns, title=f"rows {short.rows:,} to {long.rows:,}, {available_cpus():g} CPUs")
    marginal = {way: [Marginal.of(*pair) for pair in pairs] for way, pairs in seen.items()}
    for way, each in marginal.items():
        table.add_row(
            way,
            spread([one.rate for one in each], ",.0f"),
            spread([one.cpu for one in each], ".1f"),
            spread([one.rate * one.cpu / 1e6 for one in each], ".2f"),
            spread([pair[1].seconds for pair in seen[way]], ".1f"),
            spread(
                [pair[0].seconds - pair[0].rows / one.rate for pair, one in zip(seen[way], each, strict=True)], ".1f"
            ),
        )
    console.print(table)
    pairs = list(zip(marginal[RAY], marginal[ONE], strict=True))
    console.print(f"rate on Ray ÷ one process: {kept([ray.rate / one.rate for ray, one in pairs], LEAST)}")
    console.print(f"the same by CPU a row: {kept([one.cpu / ray.cpu for ray, one in pairs], LEAST)}")


if __name__ == "__main__":
    main()
