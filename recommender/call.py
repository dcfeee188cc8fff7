"""A call of many queries: each is let in, answered and counted like any other, a batch's worth at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recommender.backlog import Waiter
from recommender.domain import Query, Ranking
from recommender.errors import RecommenderError


class Payload(Protocol):
    """What a waiter is answered by: a future, or a part of a call of many."""

    def done(self) -> bool: ...  # noqa: D102 (as of a future)

    def set_result(self, ranking: Ranking, /) -> None: ...  # noqa: D102

    def set_exception(self, error: Exception, /) -> None: ...  # noqa: D102


_OUTCOMES = (Ranking, RecommenderError)


class Call:
    """Lets its queries in one by one, and is finished when each has an outcome."""

    def __init__(
        self,
        queries: Sequence[Query],
        admit: Callable[[Query, Payload], Waiter[Payload]],
        count: Callable[[Ranking | Exception], None],
        finished: asyncio.Future[list[Ranking | RecommenderError]],
    ) -> None:
        self.finished = finished
        self._queries = queries
        self._admit = admit
        self._count = count
        self._outcomes: dict[int, Ranking | RecommenderError] = {}
        self._waiters: dict[int, Waiter[Payload]] = {}
        self._next = 0
        self._finish_when_complete()

    def admit_next(self) -> None:
        """Let in the next query that is not refused at the door."""
        while self._next < len(self._queries) and not self.finished.done():
            place = self._next
            self._next += 1
            try:
                self._waiters[place] = self._admit(self._queries[place], _Part(self, place))
            except RecommenderError as refusal:
                self._outcomes[place] = refusal
                self._finish_when_complete()
            else:
                return

    def settle(self, place: int, outcome: Ranking | Exception) -> None:
        """Take the outcome of a query that was let in, and let in another."""
        del self._waiters[place]
        self._count(outcome)
        if not isinstance(outcome, _OUTCOMES):
            raise TypeError(f"{outcome!r} is no outcome of a query")
        self._outcomes[place] = outcome
        if self._next < len(self._queries):
            self.admit_next()
        elif not self._waiters:
            self._finish_when_complete()

    def waits(self, place: int) -> bool:
        """Whether a query was let in and has no outcome yet."""
        return place in self._waiters

    def give_up(self) -> tuple[list[Waiter[Payload]], int]:
        """Forget the queries that have no outcome: the waiters of those let in, and how many there are in all."""
        waiters = list(self._waiters.values())
        self._waiters.clear()
        self._next = len(self._queries)
        return waiters, len(self._queries) - len(self._outcomes)

    def _finish_when_complete(self) -> None:
        if len(self._outcomes) == len(self._queries) and not self.finished.done():
            self.finished.set_result([self._outcomes[place] for place in range(len(self._queries))])


@dataclass(slots=True, eq=False)
class _Part:
    """One query of a call of many, as what its waiter is answered by."""

    call: Call
    place: int

    def done(self) -> bool:
        return not self.call.waits(self.place)

    def set_result(self, ranking: Ranking, /) -> None:
        self.call.settle(self.place, ranking)

    def set_exception(self, error: Exception, /) -> None:
        self.call.settle(self.place, error)
