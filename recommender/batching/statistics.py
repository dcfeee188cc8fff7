"""What the batcher has done: counted while it happens, read as one frozen record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar

from recommender.batching.backlog import Batch, CloseReason
from recommender.domain import Ranking
from recommender.errors import DeadlineError, InvalidRequestError, UnavailableError
from recommender.histogram import BUCKETS, Histogram, bucket

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the batcher has done so far. Times are sums in seconds; every ended request is in one count.

    `answered`, `refused_full`, `refused_deadline`, `expired`, `cancelled`, `invalid`, `failed` and
    `unavailable` together are all requests that have ended; `waiting` and `running` count the others.
    """

    waiting: int
    running: int
    answered: int
    refused_full: int
    refused_deadline: int
    expired: int
    cancelled: int
    invalid: int
    failed: int
    unavailable: int
    batches: Mapping[int, int]
    """How many engine runs there were of each number of rows."""
    closed: Mapping[CloseReason, int]
    rows_run: int
    rows_padded: int
    """Cells that held no item of any history."""
    split: int
    """Batches that failed and were halved."""
    wait_seconds: float
    run_seconds: float
    wait_times: Histogram
    """Of callers, from admission to the start of their batch."""
    run_times: Histogram
    """Of engine runs."""

    @property
    def ended(self) -> int:
        """How many requests have ended, in whatever way."""
        refused = self.refused_full + self.refused_deadline
        gone = self.expired + self.cancelled + self.invalid + self.failed + self.unavailable
        return self.answered + refused + gone


def merged(records: Sequence[Statistics]) -> Statistics:
    """What several batchers have done together."""
    whole = Counts().record(waiting=0, running=0, refused_full=0, refused_deadline=0)
    return Statistics(
        **{
            each.name: _sum([getattr(whole, each.name), *(getattr(record, each.name) for record in records)])
            for each in fields(Statistics)
        }
    )


def _sum(values: Sequence[Any]) -> Any:  # noqa: ANN401 (numbers, histograms and counters add up alike)
    first = values[0]
    if isinstance(first, tuple):
        return tuple(map(sum, zip(*values, strict=True)))
    if isinstance(first, Mapping):
        total: Counter[Any] = Counter()
        for value in values:
            total.update(value)
        return MappingProxyType(dict(total))
    return sum(values[1:], first)


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """What an observer is told of a batch: times are seconds, `longest_wait` that of its oldest caller."""

    number: int
    """How many batches there have been, with this one."""
    rows: int
    callers: int
    cells: int
    closed: CloseReason
    longest_wait: float
    run: float
    """From the start of its run to the last answer, with everything that was tried again."""
    failed: bool
    """Whether the run failed, so that the batch was halved and tried again."""


@dataclass(slots=True)
class Counts:
    """The counters behind Statistics."""

    answered: int = 0
    expired: int = 0
    cancelled: int = 0
    invalid: int = 0
    failed: int = 0
    unavailable: int = 0
    rows_padded: int = 0
    split: int = 0
    wait_seconds: float = 0.0
    run_seconds: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)
    closed: Counter[CloseReason] = field(default_factory=Counter)
    wait_times: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    run_times: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def end(self, outcome: Ranking | BaseException) -> None:
        """Count how a request that was admitted has ended."""
        if isinstance(outcome, Ranking):
            self.answered += 1
        elif isinstance(outcome, DeadlineError):
            self.expired += 1
        elif isinstance(outcome, InvalidRequestError):
            self.invalid += 1
        elif isinstance(outcome, UnavailableError):
            self.unavailable += 1
        else:
            self.failed += 1

    def start(self, batch: Batch[T]) -> None:
        """Count a batch that starts, and how long each of its callers has waited."""
        self.closed[batch.closed] += 1
        self.rows_padded += batch.padded
        started, times, total = batch.started, self.wait_times, 0.0
        arrived, seconds, place = math.nan, 0.0, 0
        for waiter in batch.waiters:
            if waiter.arrived != arrived:  # the rows of a call come together
                arrived = waiter.arrived
                seconds = started - arrived
                place = bucket(seconds)
            total += seconds
            times[place] += 1
        self.wait_seconds += total

    def run(self, rows: int, seconds: float) -> None:
        """Count a run of the engine."""
        self.batches[rows] += 1
        self.run_seconds += seconds
        self.run_times[bucket(seconds)] += 1

    def record(self, *, waiting: int, running: int, refused_full: int, refused_deadline: int) -> Statistics:
        """The record as of now; it does not change afterwards."""
        return Statistics(
            waiting=waiting,
            running=running,
            answered=self.answered,
            refused_full=refused_full,
            refused_deadline=refused_deadline,
            expired=self.expired,
            cancelled=self.cancelled,
            invalid=self.invalid,
            failed=self.failed,
            unavailable=self.unavailable,
            batches=MappingProxyType(dict(self.batches)),
            closed=MappingProxyType(dict(self.closed)),
            rows_run=sum(rows * runs for rows, runs in self.batches.items()),
            rows_padded=self.rows_padded,
            split=self.split,
            wait_seconds=self.wait_seconds,
            run_seconds=self.run_seconds,
            wait_times=tuple(self.wait_times),
            run_times=tuple(self.run_times),
        )
