"""What the batcher has done: counted while it happens, read as one frozen record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from recommender.backlog import CloseReason
from recommender.domain import Ranking
from recommender.errors import DeadlineError, InvalidRequestError, UnavailableError

_BUCKETS = 32
Histogram: TypeAlias = tuple[int, ...]
"""How often something took how long: place i counts times below 2**i µs that are in no place before it."""


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


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """What an observer is told of a batch: times are seconds, `longest_wait` that of its oldest caller."""

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
    wait_times: list[int] = field(default_factory=lambda: [0] * _BUCKETS)
    run_times: list[int] = field(default_factory=lambda: [0] * _BUCKETS)

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

    def wait(self, seconds: float) -> None:
        """Count a caller whose batch starts."""
        self.wait_seconds += seconds
        self.wait_times[bucket(seconds)] += 1

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


def bucket(seconds: float) -> int:
    """The place of a time in a histogram; the last one also has all that is longer."""
    return min(max(int(seconds * 1e6), 0).bit_length(), _BUCKETS - 1)
