"""The order in which batches reach the engine: one starts when a slot is free, the next is staged before.

An engine with a staged batch begins it as soon as a run has ended. It need not wait for a busy event loop. The
callers of a staged batch still wait: one that leaves or is late unstages it.

At most one batch is staged, and only while every slot is taken. What is staged, or why nothing is, is one state:

| state | event | next state |
| --- | --- | --- |
| undecided | the next batch is full, and the engine wants it ready | staged |
| undecided | it may still change, or the engine wants none ready | declined |
| declined | a batch starts | undecided |
| staged | a slot comes free: the batch starts | undecided |
| staged | a caller leaves or is late, or a failed batch is tried again: unstaged | undecided |
| staged | a single caller comes who goes before the rows of large calls in it: unstaged | undecided |

A batch that is unstaged after the engine has begun it starts instead: a slot has come free that the event loop has
not seen yet. Nothing is staged while a started batch is on its way to the engine, or a failed one is tried again: they
go first.

Every operation is complete in itself: none needs another before or after it, save that each batch started without a
run is followed by one `reached`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Batch, Waiter
from recommender.batching.many import Payload
from recommender.domain import Query, Ranking


class StagedRun(Protocol):
    """A run that an engine begins when it is free, unless it is taken back before."""

    @property
    def began(self) -> float | None:
        """When it began, on the batcher's clock; None before."""

    def take_back(self) -> bool:
        """Make sure that it never begins; False if it has begun."""

    async def result(self) -> Sequence[Ranking]:
        """Return or raise what `Engine.run` does for the queries."""


@dataclass(frozen=True, slots=True)
class _Staged:
    batch: Batch[Payload]
    run: StagedRun


class _Empty(Enum):
    UNDECIDED = auto()
    """The oldest waiters have not been looked at."""
    DECLINED = auto()
    """They have, and are not staged."""


_UNDECIDED: Final = _Empty.UNDECIDED


class Staging:
    """Starts and stages the batches of a backlog.

    `stage` gives the engine a run to hold ready; it returns None if the engine wants none. `start` gets each batch that
    has a slot, with its run if it was staged. `clock` gives the batcher's time.
    """

    def __init__(
        self,
        backlog: Backlog[Payload],
        stage: Callable[[Sequence[Query]], StagedRun | None],
        start: Callable[[Batch[Payload], StagedRun | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._backlog = backlog
        self._stage = stage
        self._start = start
        self._clock = clock
        self._state: _Empty | _Staged = _UNDECIDED
        self._ahead = 0
        """Batches that go before any staged one: on their way to the engine, or tried again."""

    def fill(self, now: float) -> None:
        """Start a batch in every free slot, and stage the one after them."""
        while (batch := self._backlog.next_batch(now)) is not None:
            self._state = _UNDECIDED
            self._ahead += 1
            self._start(batch, None)
        self.look(now)

    def reached(self) -> None:
        """A batch started without a run has reached the engine: others may be staged behind it."""
        self._ahead -= 1
        self.look(self._clock())

    def look(self, now: float) -> None:
        """Stage the next batch if it is full and every slot is taken; unstage one that others are to go before."""
        backlog = self._backlog
        if isinstance(self._state, _Staged) and backlog.overtakes(self._state.batch):
            self._unstage()
        if (
            self._state is not _UNDECIDED
            or self._ahead
            or len(backlog) < backlog.max_batch_size
            or backlog.running < backlog.slots
        ):
            return
        self._state = _Empty.DECLINED
        batch = backlog.full_batch(now)
        run = self._stage(batch.queries) if batch is not None else None
        if batch is not None and run is not None:
            self._state = _Staged(batch, run)

    def slot_freed(self) -> None:
        """Start the staged batch in a slot that has come free."""
        if isinstance(self._state, _Staged):
            staged, self._state = self._state, _UNDECIDED
            self._begin(staged)

    def leave(self, waiters: Sequence[Waiter[Payload]]) -> None:
        """Take callers out of the backlog, and of what is staged."""
        if isinstance(self._state, _Staged) and not set(self._state.batch.waiters).isdisjoint(waiters):
            self._unstage()
        for waiter in waiters:
            self._backlog.leave(waiter)

    def expire(self, now: float) -> list[Waiter[Payload]]:
        """Unstage callers whose deadline has passed; returns all whose deadline has passed since the last call."""
        if isinstance(self._state, _Staged) and self._state.batch.earliest <= now:
            self._unstage()
        return self._backlog.expire(now)

    def clear(self) -> list[Waiter[Payload]]:
        """Stage nothing, and take all waiting callers out of the backlog."""
        self._unstage()
        return self._backlog.clear()

    @contextmanager
    def retrying(self) -> Iterator[None]:
        """Let nothing come between the runs of a failed batch that is tried again."""
        self._ahead += 1
        try:
            self._unstage()
            yield
        finally:
            self._ahead -= 1

    def _unstage(self) -> None:
        state, self._state = self._state, _UNDECIDED
        if isinstance(state, _Staged) and not state.run.take_back():
            self._begin(state)

    def _begin(self, staged: _Staged) -> None:
        began = staged.run.began
        self._backlog.begin(staged.batch, self._clock() if began is None else began)
        self._start(staged.batch, staged.run)
