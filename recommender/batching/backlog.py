"""The callers that wait for an engine slot, and the batches that have one.

1. A caller whose deadline has passed, or that has left, is in no new batch. If its batch runs, it is answered at once.
2. A batch is formed when a slot is free, by the rules of `batches.py`. Whether it gathers more callers first is decided
   in `gathering.py`. Single callers go before the rows of large calls in a separate batch, if that costs little. After
   such a batch the rows go first.
3. A full batch that later callers cannot change may be formed before its slot is free. Its callers wait until then. If
   one of them leaves or is late, the batch is formed again.

Admission is decided in `admission.py`. Plain code that knows no asyncio, threads or clocks. Times are seconds on the
caller's clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable
from itertools import chain, islice
from typing import Generic, TypeVar

from recommender.batching.admission import Admission, Load
from recommender.batching.batches import Batch, BatchRules, Waiter
from recommender.batching.cost import Estimator
from recommender.batching.statistics import Outcome, none_ended
from recommender.domain import Query

T = TypeVar("T")


class Backlog(Generic[T]):
    """At most `max_backlog` callers that wait for `slots` engine slots, oldest first.

    Refusals are counted in `outcomes` if given.
    """

    def __init__(
        self,
        max_batch_size: int,
        max_backlog: int,
        estimator: Estimator,
        *,
        slots: int = 1,
        deduplicate: bool = False,
        outcomes: dict[Outcome, int] | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.slots = slots
        self._max_backlog = max_backlog
        self._estimator = estimator
        self._admission = Admission(
            max_batch_size, max_backlog, slots, estimator, none_ended() if outcomes is None else outcomes
        )
        self._rules = BatchRules(max_batch_size, estimator.cost, deduplicate)
        self._waiting: OrderedDict[Waiter[T], None] = OrderedDict()
        self._rows: OrderedDict[Waiter[T], None] = OrderedDict()
        """Callers that wait as one of many of their call; `_waiting` has all others."""
        self._passed = False
        """Whether the last batch went before rows that waited."""
        self._running: list[Batch[T]] = []
        self._cells = 0
        self._earliest = math.inf
        self._admitted = -math.inf
        self._begun = 0

    def __len__(self) -> int:
        """Number of waiting callers, without those in a running batch."""
        return len(self._waiting) + len(self._rows)

    @property
    def running(self) -> int:
        """Number of batches that run."""
        return len(self._running)

    @property
    def next_deadline(self) -> float:
        """No deadline of a waiting or running caller is before this; infinite without deadlines."""
        return _earliest((self._earliest, *(batch.earliest for batch in self._running)))

    def admit(self, query: Query, deadline: float, payload: T, now: float, *, one_of_many: bool = False) -> Waiter[T]:
        """Admit a caller; `deadline` may be infinite.

        Raises BacklogFullError if the backlog is full, DeadlineError if the answer would be late.
        """
        admission = self._admission
        waiting = len(self._waiting) + len(self._rows)
        if waiting >= self._max_backlog:
            raise admission.full(waiting, self._cells, now)
        length = len(query.history)
        if deadline - now <= admission.worst_wait or length > admission.longest:
            load = Load(waiting, self._cells, self._running, self._admitted)
            admission.check(length, deadline, load, now)
        if deadline < self._earliest:  # noqa: PLR1730 (min takes three times as long)
            self._earliest = deadline
        self._admitted = now
        waiter = Waiter(query, deadline, now, payload, one_of_many)
        (self._rows if one_of_many else self._waiting)[waiter] = None
        self._cells += length
        return waiter

    def leave(self, waiter: Waiter[T]) -> bool:
        """Take a caller out; False if it no longer waits: it runs, or was answered."""
        line = self._rows if waiter.one_of_many else self._waiting
        if waiter not in line:
            return False
        del line[waiter]
        self._cells -= len(waiter.query.history)
        return True

    def expire(self, now: float) -> list[Waiter[T]]:
        """Callers whose deadline has passed since the last call; waiting ones are taken out."""
        late = []
        if now >= self._earliest:
            late = [waiter for waiter in chain(self._waiting, self._rows) if waiter.deadline <= now]
            for waiter in late:
                self.leave(waiter)
            self._earliest = _earliest(waiter.deadline for waiter in chain(self._waiting, self._rows))
        for batch in self._running:
            if now >= batch.earliest:
                late += [waiter for waiter in batch.waiters if batch.earliest <= waiter.deadline <= now]
                batch.earliest = _earliest(waiter.deadline for waiter in batch.waiters if waiter.deadline > now)
        return late

    def next_batch(self, now: float) -> Batch[T] | None:
        """Begin the next batch; None if no slot is free or no caller waits. Call `expire` first."""
        if not len(self) or len(self._running) >= self.slots:
            return None
        batch = self._rules.next_batch(self._next(), now)
        self.begin(batch, now)
        return batch

    @property
    def has_rows(self) -> bool:
        """Whether rows of large calls wait."""
        return bool(self._rows)

    def full_batch(self, now: float, staged: Collection[Waiter[T]] = ()) -> Batch[T] | None:
        """Form the batch for the next free slot if later callers cannot change it; None if they can.

        If others are `staged`, it is the batch after theirs; None while rows of large calls wait. Its callers keep
        waiting. `begin` starts it, provided that none of them has left.
        """
        if len(self) < len(staged) + self.max_batch_size or (staged and self._rows):
            return None
        waiting = (waiter for waiter in self._waiting if waiter not in staged) if staged else self._next()
        return self._rules.full_batch(waiting, now)

    def overtakes(self, batch: Batch[T]) -> bool:
        """Whether single callers go before a full batch of rows that was formed before they arrived."""
        return bool(self._waiting) and batch.waiters[0].one_of_many and isinstance(self._next(), list)

    def begin(self, batch: Batch[T], now: float) -> None:
        """Give a slot to a batch whose callers all wait."""
        waiting, rows = self._waiting, self._rows
        first = batch.waiters[0]
        self._passed = bool(rows) and bool(waiting) and not first.one_of_many
        for waiter in batch.waiters:
            del (rows if waiter.one_of_many else waiting)[waiter]
        for waiter in batch.passed:
            waiter.passed = True
        if len(batch.queries) == len(batch.waiters):
            self._cells -= batch.cells - batch.padded
        else:
            self._cells -= sum(len(waiter.query.history) for waiter in batch.waiters)
        if not len(self):
            self._earliest = math.inf
        self._admission.started(batch)
        self._begun += 1
        batch.started = now
        batch.number = self._begun
        self._running.append(batch)

    def finish(self, batch: Batch[T], now: float, *, learn: bool) -> None:
        """Free the slot of a batch; `learn` says whether its duration is evidence of a batch's cost."""
        self._running.remove(batch)
        if learn:
            self._admission.ended(batch, now)

    def hurry(self, now: float) -> float:
        """When a batch of the waiting callers must start for their earliest deadline.

        Infinite without deadlines, and while all are later than the longest wait.
        """
        if self._earliest == math.inf or self._earliest - now > self._admission.worst_wait:
            return math.inf
        rows = len(self)
        return self._earliest - self._estimator.seconds(rows, rows * self._admission.longest, now)

    def clear(self) -> list[Waiter[T]]:
        """Take out all waiting callers."""
        everyone = [*self._waiting, *self._rows]
        self._waiting.clear()
        self._rows.clear()
        self._cells = 0
        self._earliest = math.inf
        return everyone

    def retry_after(self, now: float) -> float:
        """Seconds until the waiting callers are expected to be answered."""
        return self._admission.retry_after(len(self), self._cells, now)

    def _next(self) -> Iterable[Waiter[T]]:
        """The waiting callers in the order of the next batch; a list if single callers go before rows that wait."""
        waiting, rows = self._waiting, self._rows
        if not rows:
            return waiting
        if not waiting:
            return rows
        if self._passed:
            return chain(rows, waiting)
        alone = list(islice(waiting, self.max_batch_size))
        return (
            alone if self._rules.worth_apart(alone, list(islice(rows, self.max_batch_size))) else chain(waiting, rows)
        )


def _earliest(deadlines: Iterable[float]) -> float:
    return min(deadlines, default=math.inf)
