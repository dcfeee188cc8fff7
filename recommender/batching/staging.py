"""The full batch that an engine has at hand while every slot is taken.

It goes on with it when a run has ended, without waiting for an event loop that has other work. Who is in the batch
may leave until then, like anybody who waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Batch, Waiter
from recommender.batching.many import Payload
from recommender.domain import Query, Ranking


class StagedRun(Protocol):
    """A run that an engine begins when it comes to it, unless it is taken back before."""

    @property
    def began(self) -> float | None:
        """When it began, on the batcher's clock; None before."""

    def take_back(self) -> bool:
        """See to it that it never begins; False if it has begun."""

    async def result(self) -> Sequence[Ranking]:
        """What `Engine.run` gives or raises for the queries."""


@dataclass(frozen=True, slots=True)
class _Staged:
    batch: Batch[Payload]
    run: StagedRun


class Staging:
    """Stages at most one batch of a backlog at a time, by `stage`, which gives None if the engine wants none.

    `start` is told of the batch when a slot is its own, `clock` what the batcher's time is.
    """

    def __init__(
        self,
        backlog: Backlog[Payload],
        stage: Callable[[Sequence[Query]], StagedRun | None],
        start: Callable[[Batch[Payload], StagedRun], None],
        clock: Callable[[], float],
    ) -> None:
        self._backlog = backlog
        self._stage = stage
        self._start = start
        self._clock = clock
        self._staged: _Staged | None = None
        self._looked = False
        self._pauses = 0

    def look(self, now: float) -> None:
        """Stage the batch that is next whatever comes, if there is one and no slot is free for it."""
        backlog = self._backlog
        if self._looked or self._pauses or len(backlog) < backlog.max_batch_size or backlog.running < backlog.slots:
            return
        self._looked = True  # whoever comes from now on is not among the oldest
        batch = backlog.full_batch(now)
        run = self._stage(batch.queries) if batch is not None else None
        if batch is not None and run is not None:
            self._staged = _Staged(batch, run)

    def look_again(self) -> None:
        """Others are the oldest now: a batch has started."""
        self._looked = False

    def slot_freed(self) -> None:
        """Start what is staged."""
        staged, self._staged = self._staged, None
        if staged is not None:
            self._begin(staged)

    def take_back(self) -> None:
        """Have nothing staged; where the engine has begun the batch already, a slot has come free and it is started."""
        staged, self._staged = self._staged, None
        self._looked = False
        if staged is not None and not staged.run.take_back():
            self._begin(staged)

    def without(self, waiters: Sequence[Waiter[Payload]]) -> None:
        """Have none of these callers staged."""
        if self._staged is not None and not set(self._staged.batch.waiters).isdisjoint(waiters):
            self.take_back()

    def expire(self, now: float) -> None:
        """Have nobody staged who is late."""
        if self._staged is not None and self._staged.batch.earliest <= now:
            self.take_back()

    def pause(self) -> None:
        """Stage nothing, as what goes first is not with the engine yet, until there is a `resume` for every pause."""
        self._pauses += 1

    def resume(self) -> None:
        """Go on staging."""
        self._pauses -= 1

    def _begin(self, staged: _Staged) -> None:
        began = staged.run.began
        self._backlog.begin(staged.batch, self._clock() if began is None else began)
        self._start(staged.batch, staged.run)
