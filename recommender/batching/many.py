"""A call of many queries: each is admitted, answered and counted like any other, a batch's worth at a time.

So a call of a thousand rows is not a thousand places ahead of a later caller with one. Nor are a hundred such calls:
together they have two batches' worth, one to run and one to wait, and at least one query each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from recommender.batching.batches import Waiter
from recommender.batching.statistics import Counts
from recommender.domain import Query, Ranking
from recommender.errors import RecommenderError


class Payload(Protocol):
    """Receives a waiter's result: a future, or a part of a batch call."""

    def done(self) -> bool: ...  # noqa: D102 (as of a future)

    def set_result(self, ranking: Ranking, /) -> None: ...  # noqa: D102

    def set_exception(self, error: Exception, /) -> None: ...  # noqa: D102


def answer(payload: Payload, outcome: Ranking | Exception) -> None:
    """Answer the waiting caller, unless it is answered already."""
    if payload.done():
        return
    if isinstance(outcome, Ranking):
        payload.set_result(outcome)
    else:
        payload.set_exception(outcome)


@dataclass(slots=True)
class Door:
    """The way into a batcher for the queries of calls."""

    most: int
    """Queries of one call that may wait or run at a time."""
    clock: Callable[[], float]
    admit: Callable[[Query, float, Payload, float], Waiter[Payload]]
    """Admit a query with its deadline, its payload and the time. Raises RecommenderError if it is refused."""
    admitted: Callable[[float, float], None]
    """Must follow `admit`, once for all that were admitted: starts their batch by the deadline and time given."""
    leave: Callable[[Sequence[Waiter[Payload]], int], None]
    """Take callers out, and count how many requests were cancelled with them."""
    counts: Counts
    calls: int = 0
    """Calls that are open."""
    waiting: int = 0
    """Their queries that wait or run."""

    def room(self, waiting: int) -> int:
        """Return how many more queries may come of a call of which so many wait or run."""
        least = 0 if waiting else 1
        share = min(self.most, 2 * self.most // self.calls)
        return max(min(share - waiting, 2 * self.most - self.waiting), least)


_OUTCOMES = (Ranking, RecommenderError)
_MOST_REFUSALS = 250
"""Refusals in one turn of the event loop: a millisecond."""


class Many:
    """One call of many `queries` with one `deadline`, as seen by its rows; `trace` is its trace if it is sampled."""

    def __init__(self, queries: Sequence[Query], deadline: float, trace: object | None, door: Door) -> None:
        self.waiting: dict[int, Waiter[Payload]] = {}
        """Admitted queries without an outcome, by their place."""
        self._rows = len(queries)
        self._coming: Iterator[tuple[int, Query]] = enumerate(queries)
        self._deadline = deadline
        self._trace = trace
        self._door = door
        self._outcomes: dict[int, Ranking | RecommenderError] = {}
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()

    async def outcomes(self) -> list[Ranking | RecommenderError]:
        """Admit the queries and wait for the outcome of each, in their order."""
        self._door.calls += 1
        try:
            self._admit()
            self._finish_when_complete()
            await self._finished
        except asyncio.CancelledError:
            left = list(self.waiting.values())
            self.waiting.clear()
            self._door.waiting -= len(left)
            self._door.leave(left, self._rows - len(self._outcomes))
            raise
        finally:
            self._door.calls -= 1
        return [self._outcomes[place] for place in range(self._rows)]

    def settle(self, place: int, outcome: Ranking | Exception) -> None:
        """Take the outcome of a query that was admitted, and admit others."""
        del self.waiting[place]
        self._door.waiting -= 1
        self._door.counts.end(outcome)
        if not isinstance(outcome, _OUTCOMES):
            raise TypeError(f"{outcome!r} is no outcome of a query")
        outcomes = self._outcomes
        outcomes[place] = outcome
        if len(outcomes) + len(self.waiting) < self._rows and not self._finished.done():
            self._admit()
        if not self.waiting:
            self._finish_when_complete()

    def _admit(self) -> None:
        """Admit the next queries that are not refused, as many as there is room for."""
        door, deadline = self._door, self._deadline
        most = door.room(len(self.waiting))
        if not most:
            return
        now = door.clock()
        room, refusals = most, _MOST_REFUSALS
        for place, query in self._coming:
            try:
                waiter = door.admit(query, deadline, Part(self, place), now)
            except RecommenderError as refusal:
                self._outcomes[place] = refusal
                refusals -= 1
                if not refusals:
                    self._loop.call_soon(self._admit_more)
                    break
                continue
            waiter.trace = self._trace
            self.waiting[place] = waiter
            door.waiting += 1
            room -= 1
            if not room:
                break
        if room < most:
            door.admitted(deadline, now)

    def _admit_more(self) -> None:
        """Continue after many refusals, unless the call was cancelled."""
        if not self._finished.done():
            try:
                self._admit()
            except Exception as error:  # noqa: BLE001 (a bug here must not leave the call waiting)
                self._finished.set_exception(error)
            self._finish_when_complete()

    def _finish_when_complete(self) -> None:
        if len(self._outcomes) == self._rows and not self._finished.done():
            self._finished.set_result(None)


@dataclass(slots=True, eq=False)
class Part:
    """One query of a call of many, as what its waiter is answered by."""

    call: Many
    place: int

    def done(self) -> bool:
        """Whether it needs no answer: it has one, or its call was cancelled."""
        return self.place not in self.call.waiting

    def set_result(self, ranking: Ranking, /) -> None:
        """Answer it."""
        self.call.settle(self.place, ranking)

    def set_exception(self, error: Exception, /) -> None:
        """Give it the reason of the missing answer."""
        self.call.settle(self.place, error)
