"""A call of many queries: each is admitted, answered and counted like any other, a batch's worth at a time.

So a call of a thousand rows is not a thousand places ahead of a later caller with one. Nor are a hundred such calls:
together they have two batches' worth, one to run and one to wait. Calls get a batch's worth in turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    emptied: Callable[[], None]
    """Is called when no call has queries to come."""
    waiting: int = 0
    """Queries of all calls that wait or run."""
    coming: deque[Many] = field(default_factory=deque)
    """Calls with queries to come, the next one first."""
    fills: bool = False
    """Whether the loop's next turn admits more."""

    def fill(self) -> None:
        """Admit queries while there is room, a batch's worth of one call after another."""
        self.fills = False
        self._fill()
        if not self.coming:
            self.emptied()

    def _fill(self) -> None:
        coming = self.coming
        for _ in range(len(coming)):
            room = 2 * self.most - self.waiting
            if room <= 0:
                return
            call = coming.popleft()
            if not call.admit(min(room, self.most - len(call.waiting))):
                continue
            if len(call.waiting) < self.most:  # there is no more room, or it had many refusals in this turn
                coming.appendleft(call)
                return
            coming.append(call)

    def fill_soon(self) -> None:
        """Do so once for all queries that a run answers: each time costs as much as several queries."""
        if self.coming and not self.fills:
            self.fills = True
            asyncio.get_running_loop().call_soon(self.fill)


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
        door = self._door
        door.coming.append(self)
        door.fill()
        try:
            await self._finished
        except asyncio.CancelledError:
            left = list(self.waiting.values())
            self.waiting.clear()
            door.waiting -= len(left)
            door.leave(left, self._rows - len(self._outcomes))
            door.fill_soon()
            raise
        return [self._outcomes[place] for place in range(self._rows)]

    def settle(self, place: int, outcome: Ranking | Exception) -> None:
        """Take the outcome of a query that was admitted, and admit others."""
        del self.waiting[place]
        door = self._door
        door.waiting -= 1
        if door.coming:
            door.fill_soon()
        door.counts.end(outcome)
        if not isinstance(outcome, _OUTCOMES):
            raise TypeError(f"{outcome!r} is no outcome of a query")
        outcomes = self._outcomes
        outcomes[place] = outcome
        if not self.waiting:
            self._finish_when_complete()

    def admit(self, most: int) -> bool:
        """Admit the next queries that are not refused, `most` at most; returns whether there are others to come."""
        if self._finished.done():  # it was cancelled
            return False
        try:
            others = self._admit(most)
        except Exception as error:  # noqa: BLE001 (a bug here must not leave the call waiting)
            self._finished.set_exception(error)
            return False
        self._finish_when_complete()
        return others

    def _admit(self, most: int) -> bool:
        door, deadline = self._door, self._deadline
        if not most:
            return True
        now = door.clock()
        admit, trace, waiting = door.admit, self._trace, self.waiting
        room, refusals = most, _MOST_REFUSALS
        for place, query in self._coming:
            try:
                waiter = admit(query, deadline, Part(self, place), now)
            except RecommenderError as refusal:
                self._outcomes[place] = refusal
                refusals -= 1
                if not refusals:
                    self._loop.call_soon(door.fill_soon)
                    break
                continue
            waiter.trace = trace
            waiting[place] = waiter
            door.waiting += 1
            room -= 1
            if not room:
                break
        if room < most:
            door.admitted(deadline, now)
        return len(self._outcomes) + len(self.waiting) < self._rows

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
