"""Waiters, batches, and the rules by which the next batch is formed.

1. A batch takes the oldest waiters, up to `max_batch_size` rows.
2. All rows of a run are padded to its longest history. If one run of the short histories and one of the long cost much
   less than a run of all, two batches are formed. The first has the oldest waiter in it.
3. A waiter is passed over once at most: it is in the next batch. Both runs end before the single one would have.
4. With `deduplicate`, equal queries share a row for as long as one of their callers waits.

Plain code that knows no asyncio, threads or clocks. Times are seconds on the caller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice, pairwise
from typing import Generic, TypeVar

from recommender.batching.cost import Cost
from recommender.domain import Query

_WORTH = 0.8
"""Two batches must cost less than this share of one: estimates are rough, and later callers may join the second."""

_LITTLE = 1.25
"""Single callers go ahead of the rows of large calls if both batches cost no more than so many times one."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """One caller in the backlog. `payload` belongs to the shell, which answers by it."""

    query: Query
    deadline: float
    arrived: float
    payload: T
    one_of_many: bool = False
    """Whether it waits as a row of a call of many."""
    trace: object | None = None
    """The trace of a sampled caller."""
    passed: bool = False
    """Whether a batch of callers that arrived with it went ahead of it."""


class CloseReason(Enum):
    """Why a batch took no more rows."""

    FULL = "full"
    """It has `max_batch_size` rows."""
    DRAINED = "drained"
    """No other caller was waiting when the slot became free."""
    ALIKE = "alike"
    """The other waiters have histories of another length: a second batch is cheaper."""


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """The rows of one engine run: waiter i gets the ranking of `queries[rows[i]]`."""

    queries: list[Query]
    waiters: list[Waiter[T]]
    rows: list[int]
    cells: int
    padded: int
    """Cells that hold no item of any history."""
    started: float
    closed: CloseReason
    earliest: float
    """No deadline still to come of its waiters is before this."""
    number: int = 0
    """Counts the batches that have begun; 0 before this one has."""
    passed: Sequence[Waiter[T]] = ()
    """Waiters that it goes ahead of although they came with its own."""


@dataclass(frozen=True, slots=True)
class BatchRules:
    """Forms batches of at most `max_batch_size` rows, by what runs `cost`."""

    max_batch_size: int
    cost: Cost
    deduplicate: bool = False

    def next_batch(self, waiting: Iterable[Waiter[T]], now: float) -> Batch[T]:
        """Form the batch for a free slot from at least one waiter, oldest first."""
        if self.deduplicate:
            return self._shared_rows(waiting, now)
        waiters = self._oldest(waiting)
        apart = self._apart(waiters)
        if apart is not None:
            waiters, passed = apart
            batch = _own_rows(waiters, now, CloseReason.ALIKE)
            batch.passed = passed
            return batch
        full = len(waiters) == self.max_batch_size
        return _own_rows(waiters, now, CloseReason.FULL if full else CloseReason.DRAINED)

    def full_batch(self, waiting: Iterable[Waiter[T]], now: float) -> Batch[T] | None:
        """Form the batch for the next slot if later callers cannot change it; None if they can.

        As many wait as a batch takes: later ones come behind them, also if it is divided by length.
        """
        if self.deduplicate:
            return None
        waiters = self._oldest(waiting)
        return self.next_batch(waiters, now) if len(waiters) == self.max_batch_size else None

    def worth_apart(self, first: Sequence[Waiter[T]], others: Sequence[Waiter[T]]) -> bool:
        """Whether a batch for the first and one for the others cost little more than one for as many as it takes."""
        lengths = [[len(waiter.query.history) for waiter in waiters] for waiters in (first, others)]
        together = [*lengths[0], *lengths[1]][: self.max_batch_size]
        apart = sum(self._seconds(each) for each in lengths)
        return apart <= _LITTLE * self._seconds(together)

    def _seconds(self, lengths: Sequence[int]) -> float:
        return self.cost.seconds(len(lengths), len(lengths) * max(lengths))

    def _oldest(self, waiting: Iterable[Waiter[T]]) -> list[Waiter[T]]:
        return list(islice(waiting, self.max_batch_size))

    def _apart(self, waiters: list[Waiter[T]]) -> tuple[list[Waiter[T]], list[Waiter[T]]] | None:
        """Divide waiters into two batches by length; None if one batch is about as cheap.

        The oldest waiter and those passed over before are in the first.
        """
        cost = self.cost
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

    def _shared_rows(self, waiting: Iterable[Waiter[T]], now: float) -> Batch[T]:
        row_of: dict[Query, int] = {}
        waiters = []
        rows = []
        for waiter in waiting:
            row = row_of.get(waiter.query, len(row_of))
            if row == self.max_batch_size:
                continue
            row_of[waiter.query] = row
            waiters.append(waiter)
            rows.append(row)
        closed = CloseReason.FULL if len(row_of) == self.max_batch_size else CloseReason.DRAINED
        return _batch(waiters, list(row_of), rows, now, closed)


def _own_rows(waiters: list[Waiter[T]], now: float, closed: CloseReason) -> Batch[T]:
    return _batch(waiters, [waiter.query for waiter in waiters], list(range(len(waiters))), now, closed)


def _batch(
    waiters: list[Waiter[T]], queries: list[Query], rows: list[int], now: float, closed: CloseReason
) -> Batch[T]:
    lengths = [len(query.history) for query in queries]
    cells = max(lengths) * len(lengths)
    earliest = min([waiter.deadline for waiter in waiters])
    return Batch(queries, waiters, rows, cells, cells - sum(lengths), now, closed, earliest)
