"""Counts of the batcher's work, read as one frozen record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from recommender.batching.batches import Batch, CloseReason
from recommender.domain import Ranking
from recommender.errors import DeadlineError, InvalidRequestError, UnavailableError
from recommender.histogram import BUCKETS, Histogram, bucket

T = TypeVar("T")


class Outcome(StrEnum):
    """How a request has ended; every request ends in exactly one way."""

    ANSWERED = "answered"
    REFUSED_FULL = "refused_full"
    """Too many were waiting already."""
    REFUSED_DEADLINE = "refused_deadline"
    """The answer could not come before the deadline."""
    EXPIRED = "expired"
    """The deadline passed after admission."""
    CANCELLED = "cancelled"
    """The caller left."""
    INVALID = "invalid"
    """The model found the request at fault."""
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    """The batcher was closed or broken."""


# Module-level names spare the hot path a look-up in the enum's class, which is slow in Python 3.11.
ANSWERED: Final = Outcome.ANSWERED
REFUSED_FULL: Final = Outcome.REFUSED_FULL
_FAILED: Final = Outcome.FAILED
_ENDS: Final[Mapping[type, Outcome]] = {
    Ranking: Outcome.ANSWERED,
    DeadlineError: Outcome.EXPIRED,
    InvalidRequestError: Outcome.INVALID,
    UnavailableError: Outcome.UNAVAILABLE,
}
"""An admitted request that ends with anything else has failed."""


def none_ended() -> dict[Outcome, int]:
    """A count for each outcome, of no requests."""
    return dict.fromkeys(Outcome, 0)


class _Count:
    """Reads how many requests of a record have ended in one way."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __get__(self, record: Statistics, _: object) -> int:
        return record.outcomes[self._outcome]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Everything up to now. Times are sums in seconds."""

    waiting: int
    running: int
    outcomes: Mapping[Outcome, int]
    """Requests that have ended, by how; `waiting` and `running` count the others."""
    batches: Mapping[int, int]
    """Engine runs by their number of rows."""
    closed: Mapping[CloseReason, int]
    rows_run: int
    rows_padded: int
    """Cells that held no item of any history."""
    split: int
    """Batches that failed and were halved."""
    wait_seconds: float
    run_seconds: float
    wait_times: Histogram
    """From the admission of callers to the start of their batch."""
    run_times: Histogram
    """Of engine runs."""

    answered = _Count(Outcome.ANSWERED)
    refused_full = _Count(Outcome.REFUSED_FULL)
    refused_deadline = _Count(Outcome.REFUSED_DEADLINE)
    expired = _Count(Outcome.EXPIRED)
    cancelled = _Count(Outcome.CANCELLED)
    invalid = _Count(Outcome.INVALID)
    failed = _Count(Outcome.FAILED)
    unavailable = _Count(Outcome.UNAVAILABLE)

    @property
    def ended(self) -> int:
        """Number of requests that have ended in any way."""
        return sum(self.outcomes.values())


def merged(records: Sequence[Statistics]) -> Statistics:
    """Sum the statistics of several batchers."""
    whole = Counts().record(waiting=0, running=0)
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
    """An observer's report of a batch. Times are in seconds."""

    number: int
    """Counts the batches that have begun, this one included."""
    rows: int
    callers: int
    cells: int
    closed: CloseReason
    longest_wait: float
    """Of its oldest caller, until the batch started."""
    run: float
    """From the start of the run to the last answer, with everything that was tried again."""
    failed: bool
    """Whether the run failed, so that the batch was halved and tried again."""


@dataclass(slots=True)
class Counts:
    """The counters behind Statistics."""

    outcomes: dict[Outcome, int] = field(default_factory=none_ended)
    rows_padded: int = 0
    split: int = 0
    wait_seconds: float = 0.0
    run_seconds: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)
    closed: Counter[CloseReason] = field(default_factory=Counter)
    wait_times: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    run_times: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def end(self, outcome: Ranking | BaseException) -> None:
        """Count a request that was admitted and has ended."""
        self.outcomes[_ENDS.get(type(outcome), _FAILED)] += 1

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
        """Count an engine run."""
        self.batches[rows] += 1
        self.run_seconds += seconds
        self.run_times[bucket(seconds)] += 1

    def record(self, *, waiting: int, running: int) -> Statistics:
        """The record as of now; it does not change afterwards."""
        return Statistics(
            waiting=waiting,
            running=running,
            outcomes=MappingProxyType(self.outcomes.copy()),
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
