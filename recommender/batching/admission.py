"""Whether a caller is admitted: estimates of its wait, compared with its deadline.

1. At most `max_backlog` callers wait. One more is refused, with the time after which room is expected.
2. A caller is refused if its answer would come after its deadline.
3. A wrong estimate never refuses callers for good. An idle engine with an empty backlog admits every caller. After a
   second without an admission the next caller is admitted as a probe.

Plain code that knows no asyncio, threads or clocks. Times are seconds on the caller's clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from recommender.batching.batches import Batch
from recommender.batching.cost import Estimator
from recommender.batching.statistics import REFUSED_FULL, Outcome
from recommender.errors import BacklogFullError, DeadlineError

_PROBE_INTERVAL = 1.0
"""Seconds without an admission after which an estimate is put to the test."""
_LEAST_RETRY, _MOST_RETRY = 0.001, 60.0

T = TypeVar("T")


class Load(NamedTuple, Generic[T]):
    """The callers and batches ahead of a new caller."""

    waiting: int
    cells: int
    """Items in the histories of waiting callers, without padding."""
    running: Sequence[Batch[T]]
    last_admitted: float


class Admission:
    """Estimates waits for `slots` engine slots, and refuses callers; refusals are counted in `outcomes`."""

    def __init__(
        self,
        max_batch_size: int,
        max_backlog: int,
        slots: int,
        estimator: Estimator,
        outcomes: dict[Outcome, int],
    ) -> None:
        self.longest = 0
        """Items in the longest history so far."""
        self.worst_wait = math.inf
        """No caller with a history up to `longest` is expected to wait longer than these seconds.

        A caller with more time needs no `check`, which spares most callers its cost.
        """
        self._max_batch_size = max_batch_size
        self._max_backlog = max_backlog
        self._slots = slots
        self._estimator = estimator
        self._outcomes = outcomes
        self._padding = 1.0
        self._last_rows = 0

    def full(self, waiting: int, cells: int, now: float) -> BacklogFullError:
        """Refuse a caller because `max_backlog` wait, with `cells` items in their histories."""
        self._outcomes[REFUSED_FULL] += 1
        return BacklogFullError(self._max_backlog, self.retry_after(waiting, cells, now))

    def check(self, length: int, deadline: float, load: Load[T], now: float) -> None:
        """Take note of a history's length; raises DeadlineError if its answer cannot come in time."""
        left = deadline - now
        if left < math.inf and (why := self._hopeless(length, left, load, now)) is not None:
            self._outcomes[Outcome.REFUSED_DEADLINE] += 1
            raise DeadlineError(why)
        if length > self.longest:
            self.longest = length
            self.worst_wait = self._full_backlog_seconds(now)

    def started(self, batch: Batch[T]) -> None:
        """Learn from the rows and the padding of a batch that starts."""
        real = batch.cells - batch.padded
        self._padding = batch.cells / real if real else 1.0
        self._last_rows = len(batch.queries)

    def ended(self, batch: Batch[T], now: float) -> None:
        """Learn from the duration of a batch that has ended."""
        self._estimator.observe(len(batch.queries), batch.cells, now - batch.started, now)
        self.worst_wait = self._full_backlog_seconds(now)

    def retry_after(self, waiting: int, cells: int, now: float) -> float:
        """Seconds until the waiting callers are expected to be answered; between 1 ms and a minute."""
        seconds = waiting / self._max_batch_size * self._full_batch_seconds(waiting, cells, now) / self._slots
        return min(max(seconds, _LEAST_RETRY), _MOST_RETRY)

    def expected_seconds(self, length: int, load: Load[T], now: float) -> float:
        """Seconds until a caller with a history of `length`, arriving now, is expected to be answered."""
        ahead, beside = divmod(load.waiting, self._max_batch_size)
        busy = len(load.running) >= self._slots
        wait = 0.0
        if busy:
            wait = min(
                max(batch.started - now + self._estimator.seconds(len(batch.queries), batch.cells, now), 0.0)
                for batch in load.running
            )
        if ahead:
            wait += ahead * self._full_batch_seconds(load.waiting, load.cells, now) / self._slots
        # Others will arrive before its batch starts: estimated as many as joined the last one.
        rows = max(beside + 1, self._last_rows) if busy else beside + 1
        return wait + self._estimator.seconds(
            rows, rows * max(self._mean_length(load.waiting, load.cells), length), now
        )

    def _hopeless(self, length: int, left: float, load: Load[T], now: float) -> str | None:
        """Why an answer cannot come within the seconds `left`; None if it may."""
        if left <= 0:
            return f"the deadline passed {-left * 1e3:.1f} ms before the request could be queued"
        if not load.waiting and len(load.running) < self._slots:
            return None
        if now - load.last_admitted >= _PROBE_INTERVAL:
            return None
        expected = self.expected_seconds(length, load, now)
        if expected <= left:
            return None
        return (
            f"the answer is expected in {expected * 1e3:.1f} ms and the deadline is in {left * 1e3:.1f} ms: "
            "allow more time, or send fewer requests at once"
        )

    def _mean_length(self, waiting: int, cells: int) -> float:
        if not waiting:
            return 1.0
        return min(cells / waiting * self._padding, max(self.longest, 1))

    def _full_batch_seconds(self, waiting: int, cells: int, now: float) -> float:
        rows = self._max_batch_size
        return self._estimator.seconds(rows, rows * self._mean_length(waiting, cells), now)

    def _full_backlog_seconds(self, now: float) -> float:
        rows = self._max_batch_size
        batches = self._max_backlog // rows + 2  # those before, the one that runs, and its own
        return batches * self._estimator.most_seconds(rows, rows * max(self.longest, 1), now)
