"""One run of a plan against a server: its progress, and the figures of generator and server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.facts import ROOT
from bench.load import k6
from bench.load.plan import GOOD, LOST, Outcomes, Phase, Plan
from recommender.observability import instruments as telemetry
from recommender.observability.scraping import Change, NoMetricsError, Scrape, scrape

_SCRAPED_EVERY = 1.0
_SLICE = 1.0
"""Seconds of a run that make one point of a plot."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Told:
    """The server's metrics for a part of a run; NaN if nothing ran or there are no metrics."""

    batch_size: float = math.nan
    queue: float = math.nan
    inference: float = math.nan
    call: float = math.nan
    """Mean seconds of a call in the server; queue and inference are part of it."""
    cpu: float = math.nan
    """Cores that the server used."""
    answered: float = math.nan
    """Requests a second that the batcher answered."""


@dataclass(frozen=True)
class Part:
    """A part of a run, as a row of a table or a point of a plot."""

    name: str
    begin: float
    seconds: float
    requests: int
    offered: float
    """Requests a second that were due."""
    answered: float
    """Answered requests per second, by the time of the answer."""
    failed: int
    """Requests with a status other than OK, or none."""
    latencies: npt.NDArray[np.float64]
    """Seconds from the intended send to the answer, of requests that were answered."""
    told: Told

    def quantile(self, q: float) -> float:
        """Of the latencies of answered requests, in seconds."""
        return float(np.quantile(self.latencies, q)) if len(self.latencies) else math.nan

    def quantile_of_all(self, q: float) -> float:
        """The same where a request that failed counts as never answered."""
        if not self.requests or not len(self.latencies):
            return math.inf
        place = math.ceil(q * self.requests) - 1
        return float(np.sort(self.latencies)[place]) if place < len(self.latencies) else math.inf

    @property
    def error_rate(self) -> float:
        """The share of requests that failed."""
        return self.failed / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Run:
    """Result of a plan."""

    plan: Plan
    outcomes: Outcomes
    scrapes: Sequence[Scrape] = field(default_factory=tuple)

    @cached_property
    def lag(self) -> float:
        """p99 of how late the generator sent, in seconds: what of the latencies is its own."""
        late = self.outcomes.sent - self.outcomes.intended
        late = late[np.isfinite(late)]
        return float(np.quantile(late, 0.99)) if len(late) else 0.0

    @property
    def generator_cpu(self) -> float:
        """Seconds of CPU of the generator for a request."""
        return self.outcomes.cpu_seconds / max(len(self.outcomes.sent), 1)

    def part(self, name: str, begin: float, seconds: float, kind: int = GOOD) -> Part:
        """Result of the requests that one kind of caller was due to send in that time."""
        out = self.outcomes
        of_kind = out.kind == kind
        inside = of_kind & (out.intended >= begin) & (out.intended < begin + seconds)
        good = inside & (out.status == 0)
        came = of_kind & (out.status == 0) & (out.done >= begin) & (out.done < begin + seconds)
        return Part(
            name, begin, seconds, int(inside.sum()), float(inside.sum()) / seconds, float(came.sum()) / seconds,
            int((inside & (out.status != 0)).sum()), (out.done - out.intended)[good], self._told(begin, seconds),
        )  # fmt: skip

    def whole(self, kind: int = GOOD) -> Part:
        """The whole run."""
        return self.part("whole run", 0.0, self.plan.seconds, kind)

    def phases(self) -> list[Part]:
        """One for each phase of the plan."""
        parts, begin = [], 0.0
        for phase in self.plan.phases:
            parts.append(self.part(phase.name, begin, phase.seconds))
            begin += phase.seconds
        return parts

    def slices(self) -> list[Part]:
        """One for each second or so."""
        count = max(int(self.plan.seconds / _SLICE), 1)
        width = self.plan.seconds / count
        return [self.part(f"{number * width:.0f} s", number * width, width) for number in range(count)]

    def statuses(self) -> dict[str, int]:
        """How many requests ended how, by the status's name."""
        names = {code.value[0]: code.name for code in grpc.StatusCode} | {LOST: "no answer"}
        values, counts = np.unique(self.outcomes.status, return_counts=True)
        return {names.get(int(value), str(value)): int(count) for value, count in zip(values, counts, strict=True)}

    def _told(self, begin: float, seconds: float) -> Told:
        at = self.outcomes.began + begin
        inside = [each for each in self.scrapes if at - _SCRAPED_EVERY / 2 <= each.at <= at + seconds + _SCRAPED_EVERY]
        if len(inside) < 2:
            return Told()
        change = Change(inside[0], inside[-1])
        return Told(
            change.mean(telemetry.BATCH_SIZES), change.mean(telemetry.QUEUE_TIME),
            change.mean(telemetry.INFERENCE_TIME),
            change.mean(telemetry.CALL_DURATION), change.rate(telemetry.CPU_TIME),
            change.rate(telemetry.REQUESTS, recommender_outcome="answered"),
        )  # fmt: skip


def run(
    plan: Plan,
    *,
    metrics: str | None = None,
    generator: str = "own",
    console: Console | None = None,
    title: str = "load",
) -> Run:
    """Run a plan and read the server's metrics meanwhile, if there are any; `console` shows progress.

    Raises RuntimeError with the generator's words if that fails.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        _observed(metrics) as scrapes,
        _progress(plan, console, title) as told,
    ):
        send = k6.run if generator == "k6" else _own
        outcomes = send(plan, Path(folder), told)
    return Run(plan, outcomes, tuple(scrapes))


def warm_up(plan: Plan, seconds: float = 2.0) -> None:
    """Let a server see such requests before it is measured; at most 200 a second or 8 in flight."""
    first = plan.phases[0]
    rate = min(first.rate or first.to, 200.0)
    phase = Phase(seconds, rate, rate) if plan.open_loop else Phase(seconds, in_flight=min(first.in_flight, 8))
    calm = Plan(
        plan.target, (phase,), plan.method, plan.rows, plan.connections, plan.streams, token=plan.token,
        items=plan.items, longest=plan.longest, file=plan.file, seed=plan.seed + 1,
    )  # fmt: skip
    outcomes = run(calm).outcomes
    if not (outcomes.status == 0).any():
        raise RuntimeError(f"no request of the warm-up was answered: {Run(calm, outcomes).statuses()}")


def _own(plan: Plan, folder: Path, told: Callable[[dict[str, float]], None]) -> Outcomes:
    plan.write(folder / "plan.json")
    command = [sys.executable, "-m", "bench.load.generator", str(folder / "plan.json"), str(folder / "outcomes.npz")]
    with (folder / "errors").open("w+") as errors:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                for line in process.stdout or ():
                    told(json.loads(line))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"the generator failed: {errors.read()}")
    return Outcomes.read(folder / "outcomes.npz")


@contextmanager
def _observed(metrics: str | None) -> Iterator[list[Scrape]]:
    """The server's metrics, read every second in a separate thread."""
    scrapes: list[Scrape] = []
    ended = threading.Event()

    def observe(url: str) -> None:
        while True:
            try:
                scrapes.append(scrape(url))
            except NoMetricsError:
                if not scrapes:
                    return
            if ended.wait(_SCRAPED_EVERY):
                return

    if metrics is None:
        yield scrapes
        return
    thread = threading.Thread(target=observe, args=(metrics,))
    thread.start()
    try:
        yield scrapes
    finally:
        ended.set()
        thread.join()


@contextmanager
def _progress(plan: Plan, console: Console | None, title: str) -> Iterator[Callable[[dict[str, float]], None]]:
    """A bar on the console; what is given to it is a generator's line."""
    if console is None:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task(title, total=plan.seconds, said="starting")

        def told(line: dict[str, float]) -> None:
            said = ""
            if "sent" in line:
                said = f"{line['sent']:,} sent, {line['in_flight']:,} in flight, {line['failed']:,} failed"
            progress.update(task, completed=min(line["seconds"], plan.seconds), said=said)

        yield told
