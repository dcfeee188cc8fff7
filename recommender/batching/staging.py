"""The order in which batches reach the engine: one starts when a slot is free, those after it are staged before.

An engine with a staged batch begins it as soon as a run has ended. It need not wait for a busy event loop. The
callers of a staged batch still wait: one that leaves or is late unstages it.

Batches are staged only while every slot is taken. Usually one is. If the engine has ended all that were staged before
the loop comes to see it, it stood idle: then twice as many may be staged the next time, and half as many after 16 times
in a row that it did not. So an engine has enough to do beside a loop that takes 100 ms for a round, as it does while
thousands of calls are refused.

The next batch behind the staged ones is decided once for each batch that starts:

| event | what follows |
| --- | --- |
| it is full, and the engine wants it ready | staged; the one behind it is undecided |
| it may still change, or the engine wants none ready | declined until a batch starts |
| a slot comes free | the first staged batch starts, and those after it that the engine has begun |
| a caller leaves or is late | its batch is unstaged with those behind it |
| a failed batch is tried again | all are unstaged |
| a single caller comes who goes before the rows of large calls in the first | it is unstaged |
| rows of a large call come | all but the first are unstaged: rows wait for one batch of single callers, not for many |

A batch that is unstaged after the engine has begun it starts instead: a slot has come free that the event loop has
not seen yet. Nothing is staged while a started batch is on its way to the engine, or a failed one is tried again: they
go first.

Every operation is complete in itself: none needs another before or after it, save that each batch started without a
run is followed by one `reached`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Batch, Waiter
from recommender.batching.many import Payload
from recommender.domain import Query, Ranking


class StagedRun(Protocol):
    """A run that an engine begins when it is free, unless it is taken back before."""

    @property
    def began(self) -> float | None:
        """When it began, on the batcher's clock; None before."""

    @property
    def ended(self) -> float | None:
        """When the engine ended it, whether the event loop knows or not; None before."""

    def take_back(self) -> bool:
        """Make sure that it never begins; False if it has begun."""

    async def result(self) -> Sequence[Ranking]:
        """Return or raise what `Engine.run` does for the queries."""


@dataclass(frozen=True, slots=True)
class _Staged:
    batch: Batch[Payload]
    run: StagedRun


_MOST_STAGED = 16
"""As many as the default backlog holds, in batches of 64."""


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
        self._staged: deque[_Staged] = deque()
        self._declined = False
        """Whether the batch behind these was looked at and not staged."""
        self._most = 1
        """How many may be staged."""
        self._in_time = 0
        """Slots in a row that came free while the engine had something to do."""
        self._ahead = 0
        """Batches that go before any staged one: on their way to the engine, or tried again."""

    def fill(self, now: float) -> None:
        """Start a batch in every free slot, and stage those after them."""
        while (batch := self._backlog.next_batch(now)) is not None:
            self._declined = False
            self._ahead += 1
            self._start(batch, None)
        self.look(now)

    def reached(self) -> None:
        """A batch started without a run has reached the engine: others may be staged behind it."""
        self._ahead -= 1
        self.look(self._clock())

    def look(self, now: float) -> None:
        """Stage the next batches that are full while every slot is taken; unstage those that others go before."""
        backlog, staged = self._backlog, self._staged
        if staged and backlog.overtakes(staged[0].batch):
            self._unstage()
        elif len(staged) > 1 and backlog.has_rows:
            self._unstage(1)
        if self._declined or self._ahead or backlog.running < backlog.slots:
            return
        while len(staged) < self._most:
            # Asked for each caller that comes, so a set of all is made only when there are enough behind them.
            if len(backlog) < sum([len(each.batch.waiters) for each in staged]) + backlog.max_batch_size:
                return
            batch = backlog.full_batch(now, {waiter for each in staged for waiter in each.batch.waiters})
            run = self._stage(batch.queries) if batch is not None else None
            if batch is None or run is None:
                self._declined = True
                return
            staged.append(_Staged(batch, run))

    def slot_freed(self) -> None:
        """Start the staged batch in a slot that has come free, and those that the engine has begun since."""
        staged = self._staged
        if not staged:
            return
        if staged[-1].run.ended is not None:
            self._most, self._in_time = min(2 * self._most, _MOST_STAGED), 0
        else:
            self._in_time += 1
            if self._in_time == _MOST_STAGED:
                self._most, self._in_time = max(self._most // 2, 1), 0
        backlog = self._backlog
        while staged and (backlog.running < backlog.slots or staged[0].run.began is not None):
            self._begin(staged.popleft())

    def leave(self, waiters: Sequence[Waiter[Payload]]) -> None:
        """Take callers out of the backlog, and of what is staged."""
        if self._staged:
            gone = set(waiters)
            for place, each in enumerate(self._staged):
                if not gone.isdisjoint(each.batch.waiters):
                    self._unstage(place)
                    break
        for waiter in waiters:
            self._backlog.leave(waiter)

    def expire(self, now: float) -> list[Waiter[Payload]]:
        """Unstage callers whose deadline has passed; returns all whose deadline has passed since the last call."""
        for place, each in enumerate(self._staged):
            if each.batch.earliest <= now:
                self._unstage(place)
                break
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

    def _unstage(self, place: int = 0) -> None:
        """Take back the staged batches from this one on. Those that the engine has begun start, with all before."""
        staged = self._staged
        # Behind others it waits until a batch starts: to form them all again for each caller that leaves takes long.
        self._declined = place > 0
        while len(staged) > place:
            if not staged[-1].run.take_back():
                while staged:
                    self._begin(staged.popleft())
                return
            staged.pop()

    def _begin(self, staged: _Staged) -> None:
        self._declined = False
        began = staged.run.began
        self._backlog.begin(staged.batch, self._clock() if began is None else began)
        self._start(staged.batch, staged.run)
