"""Who waits, who is refused, who has left, and what the next batch is: plain decisions, given `now`.

The rules, in one place:

1. At most `max_backlog` callers wait. One more is refused at once, with the time after which room is expected.
2. A caller whose deadline comes before its answer can is refused at once. Exceptions, so that a wrong estimate
   never locks the door: an idle engine with nobody waiting takes everyone, and where nobody was let in for
   a second, the next caller is, as a probe.
3. A batch is whatever waits when an engine slot is free, oldest first, up to `max_batch_size` rows. Whether it
   waits for those who come just behind is for `gathering.py`. Where two batches, one of the short histories and one of
   the long, cost much less than one in which the short are padded, the oldest's comes first. Who is passed over in
   this way is in the next batch: both have ended before the one would have.
4. Who is late or has left is in no batch. Who is late while its batch runs is told so then.
5. A batch is put together before its slot is free if nobody who comes later can be in it: it is full. Its callers
   wait until the slot is free all the same, and if one of them leaves or is late, it is put together anew.
6. With `deduplicate`, callers who ask the same share one row; it is in the batch as long as one of them waits.

Nothing here knows asyncio, threads or clocks: times are seconds on the caller's clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice, pairwise
from typing import Generic, TypeVar

from recommender.batching.cost import Estimator
from recommender.domain import Query
from recommender.errors import BacklogFullError, DeadlineError

_PROBE_INTERVAL = 1.0
"""Seconds without anybody let in, after which an estimate is put to the test."""
_LEAST_RETRY, _MOST_RETRY = 0.001, 60.0
_WORTH = 0.8
"""Two batches must cost less than this share of one: estimates are none too sure, and others may join the second."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """One caller in the backlog; `payload` is the shell's own, by which it answers."""

    query: Query
    deadline: float
    arrived: float
    payload: T
    trace: object | None = None
    """What its caller is traced by, if it is."""
    passed: bool = False
    """Whether a batch of those who came with it went before it."""


class CloseReason(Enum):
    """Why a batch took no more rows."""

    FULL = "full"
    """It has `max_batch_size` rows."""
    DRAINED = "drained"
    """Nobody else was waiting when the slot came free."""
    ALIKE = "alike"
    """Those who wait have histories of another length, for which a batch of their own is cheaper."""


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """What one engine run answers: waiter i gets the ranking of `queries[rows[i]]`."""

    queries: list[Query]
    waiters: list[Waiter[T]]
    rows: list[int]
    cells: int
    padded: int
    """Cells that hold no item of any history."""
    started: float
    closed: CloseReason
    earliest: float
    """No deadline of its waiters comes before this that has not come yet."""
    number: int = 0
    """How many batches there have been, with this one; 0 before it has begun."""


@dataclass(slots=True)
class Refusals:
    """How many callers were refused at the door, by reason."""

    full: int = 0
    deadline: int = 0


@dataclass(slots=True)
class Backlog(Generic[T]):
    """The callers who wait for `slots` engine slots; see the module for the rules."""

    max_batch_size: int
    max_backlog: int
    estimator: Estimator
    slots: int = 1
    deduplicate: bool = False
    refused: Refusals = field(default_factory=Refusals)
    _waiting: OrderedDict[Waiter[T], None] = field(default_factory=OrderedDict)
    _running: list[Batch[T]] = field(default_factory=list)
    _cells: int = 0
    _padding: float = 1.0
    _earliest: float = math.inf
    _admitted: float = -math.inf
    _longest: int = 0
    _worst_wait: float = math.inf
    _last_rows: int = 0
    _closed: int = 0

    def __len__(self) -> int:
        """How many callers wait; those in a running batch no longer do."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many batches run."""
        return len(self._running)

    def admit(self, query: Query, deadline: float, payload: T, now: float) -> Waiter[T]:
        """Let a caller in, or raise BacklogFullError or DeadlineError; `deadline` may be infinite."""
        if len(self._waiting) >= self.max_backlog:
            self.refused.full += 1
            raise BacklogFullError(self.max_backlog, self.retry_after(now))
        length = len(query.history)
        # Most deadlines are far beyond anything that can happen here: an estimate would only cost time.
        if deadline - now <= self._worst_wait or length > self._longest:
            self._refuse_hopeless(query, deadline, now)
        self._earliest = min(self._earliest, deadline)
        self._admitted = now
        waiter = Waiter(query, deadline, now, payload)
        self._waiting[waiter] = None
        self._cells += length
        if length > self._longest:
            self._longest = length
            self._worst_wait = self._full_backlog_seconds(now)
        return waiter

    def leave(self, waiter: Waiter[T]) -> bool:
        """Take a caller out; False if it no longer waits (it runs, or was answered)."""
        if waiter not in self._waiting:
            return False
        del self._waiting[waiter]
        self._cells -= len(waiter.query.history)
        return True

    def expire(self, now: float) -> list[Waiter[T]]:
        """Everyone whose deadline has come since the last time: who waited is taken out, who runs is named once."""
        late = []
        if now >= self._earliest:
            late = [waiter for waiter in self._waiting if waiter.deadline <= now]
            for waiter in late:
                self.leave(waiter)
            self._earliest = _earliest(waiter.deadline for waiter in self._waiting)
        for batch in self._running:
            if now >= batch.earliest:
                late += [waiter for waiter in batch.waiters if batch.earliest <= waiter.deadline <= now]
                batch.earliest = _earliest(waiter.deadline for waiter in batch.waiters if waiter.deadline > now)
        return late

    @property
    def next_deadline(self) -> float:
        """No deadline of a caller who waits or runs comes before this; infinite if nobody has one."""
        return _earliest((self._earliest, *(batch.earliest for batch in self._running)))

    def next_batch(self, now: float) -> Batch[T] | None:
        """The next batch to run, or None: no slot is free, or nobody waits. Many `expire` first."""
        if not self._waiting or len(self._running) >= self.slots:
            return None
        batch = self._shared_rows(now) if self.deduplicate else self._own_rows(now)
        self.begin(batch, now)
        return batch

    def full_batch(self, now: float) -> Batch[T] | None:
        """The batch that the next free slot is for, if nobody who comes now can be in it; None otherwise.

        Its callers go on waiting. `begin` starts it as long as none of them has left.
        """
        if self.deduplicate or len(self._waiting) < self.max_batch_size:
            return None
        waiters = self._oldest()
        if self._apart(waiters) is not None:
            return None
        return self._batch_of_own_rows(waiters, now, CloseReason.FULL)

    def begin(self, batch: Batch[T], now: float) -> None:
        """Give a slot to a batch of callers who all wait."""
        for waiter in batch.waiters:
            del self._waiting[waiter]
        real = batch.cells - batch.padded
        self._cells -= real if not self.deduplicate else sum(len(waiter.query.history) for waiter in batch.waiters)
        self._padding = batch.cells / real if real else 1.0
        if not self._waiting:
            self._earliest = math.inf
        self._closed += 1
        self._last_rows = len(batch.queries)
        batch.started = now
        batch.number = self._closed
        self._running.append(batch)

    def hurry(self, now: float) -> float:
        """When a batch of those who wait must start, for the earliest deadline among them to be met."""
        if self._earliest == math.inf:
            return math.inf
        rows = len(self._waiting)
        return self._earliest - self.estimator.seconds(rows, rows * self._longest, now)

    def finish(self, batch: Batch[T], now: float, *, learn: bool) -> None:
        """Free the slot of a batch; `learn` says whether its duration tells what batches cost."""
        self._running.remove(batch)
        if learn:
            self.estimator.observe(len(batch.queries), batch.cells, now - batch.started, now)
            self._worst_wait = self._full_backlog_seconds(now)

    def clear(self) -> list[Waiter[T]]:
        """Take out everyone who waits."""
        everyone = list(self._waiting)
        self._waiting.clear()
        self._cells = 0
        self._earliest = math.inf
        return everyone

    def retry_after(self, now: float) -> float:
        """In how many seconds those who wait now will have been served."""
        batches = len(self._waiting) / self.max_batch_size
        return min(max(batches * self._full_batch_seconds(now) / self.slots, _LEAST_RETRY), _MOST_RETRY)

    def expected_seconds(self, query: Query, now: float) -> float:
        """How long a caller who came now would wait for its answer."""
        rows = len(self._waiting)
        ahead, beside = divmod(rows, self.max_batch_size)
        wait = 0.0
        if len(self._running) >= self.slots:
            wait = min(
                max(batch.started - now + self.estimator.seconds(len(batch.queries), batch.cells, now), 0.0)
                for batch in self._running
            )
        if ahead:
            wait += ahead * self._full_batch_seconds(now) / self.slots
        length = max(self._mean_length(), len(query.history))
        # Others will come before its batch starts: as many as came to the last one, by all one knows.
        own = max(beside + 1, self._last_rows) if len(self._running) >= self.slots else beside + 1
        return wait + self.estimator.seconds(own, own * length, now)

    def _refuse_hopeless(self, query: Query, deadline: float, now: float) -> None:
        left = deadline - now
        if left == math.inf:
            return
        if left <= 0:
            self.refused.deadline += 1
            raise DeadlineError(f"the deadline passed {-left * 1e3:.1f} ms before the request could be queued")
        if not self._waiting and len(self._running) < self.slots:
            return
        if now - self._admitted >= _PROBE_INTERVAL:
            return
        expected = self.expected_seconds(query, now)
        if expected > left:
            self.refused.deadline += 1
            raise DeadlineError(
                f"the answer is expected in {expected * 1e3:.1f} ms and the deadline is in {left * 1e3:.1f} ms: "
                "allow more time, or send fewer requests at once"
            )

    def _mean_length(self) -> float:
        if not self._waiting:
            return 1.0
        return min(self._cells / len(self._waiting) * self._padding, max(self._longest, 1))

    def _full_backlog_seconds(self, now: float) -> float:
        """No caller whose history is no longer than any yet is expected to wait longer than this."""
        rows = self.max_batch_size
        batches = self.max_backlog // rows + 2  # those before, the one that runs, and its own
        return batches * self.estimator.most_seconds(rows, rows * max(self._longest, 1), now)

    def _full_batch_seconds(self, now: float) -> float:
        return self.estimator.seconds(self.max_batch_size, self.max_batch_size * self._mean_length(), now)

    def _own_rows(self, now: float) -> Batch[T]:
        waiters = self._oldest()
        apart = self._apart(waiters)
        if apart is not None:
            waiters, later = apart
            for waiter in later:
                waiter.passed = True
            return self._batch_of_own_rows(waiters, now, CloseReason.ALIKE)
        full = len(waiters) == self.max_batch_size
        return self._batch_of_own_rows(waiters, now, CloseReason.FULL if full else CloseReason.DRAINED)

    def _oldest(self) -> list[Waiter[T]]:
        return list(islice(self._waiting, self.max_batch_size))

    def _batch_of_own_rows(self, waiters: list[Waiter[T]], now: float, closed: CloseReason) -> Batch[T]:
        return _batch(waiters, [waiter.query for waiter in waiters], list(range(len(waiters))), now, closed)

    def _apart(self, waiters: list[Waiter[T]]) -> tuple[list[Waiter[T]], list[Waiter[T]]] | None:
        """The same in two batches by length, the first with the oldest; None if one batch is about as cheap.

        Who was passed over once is in the first.
        """
        cost = self.estimator.cost
        lengths = [len(waiter.query.history) for waiter in waiters]
        rows, longest = len(lengths), max(lengths)
        if longest * rows - sum(lengths) <= cost.cells_worth_a_run:
            return None
        ordered = sorted(lengths)
        oldest = len(waiters[0].query.history)
        kept = [oldest, *(len(waiter.query.history) for waiter in waiters if waiter.passed)]
        low, high = min(kept), max(kept)
        best, cut = _WORTH * cost.seconds(rows, rows * longest), 0
        for short, (below, above) in enumerate(pairwise(ordered), 1):
            if below < above and (above <= low or below >= high):
                both = cost.seconds(short, short * below) + cost.seconds(rows - short, (rows - short) * longest)
                if both < best:
                    best, cut = both, above
        if not cut:
            return None
        sides: tuple[list[Waiter[T]], list[Waiter[T]]] = ([], [])
        for waiter in waiters:
            sides[(len(waiter.query.history) >= cut) != (oldest >= cut)].append(waiter)
        return sides

    def _shared_rows(self, now: float) -> Batch[T]:
        row_of: dict[Query, int] = {}
        waiters = []
        rows = []
        for waiter in self._waiting:
            row = row_of.get(waiter.query, len(row_of))
            if row == self.max_batch_size:
                continue
            row_of[waiter.query] = row
            waiters.append(waiter)
            rows.append(row)
        closed = CloseReason.FULL if len(row_of) == self.max_batch_size else CloseReason.DRAINED
        return _batch(waiters, list(row_of), rows, now, closed)


def _batch(
    waiters: list[Waiter[T]], queries: list[Query], rows: list[int], now: float, closed: CloseReason
) -> Batch[T]:
    lengths = [len(query.history) for query in queries]
    cells = max(lengths) * len(lengths)
    earliest = min([waiter.deadline for waiter in waiters])
    return Batch(queries, waiters, rows, cells, cells - sum(lengths), now, closed, earliest)


def _earliest(deadlines: Iterable[float]) -> float:
    return min(deadlines, default=math.inf)
