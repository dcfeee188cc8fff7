"""A call of many queries: each is let in, answered and counted like any other, a batch's worth at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from recommender.batching.batches import Waiter
from recommender.domain import Query, Ranking
from recommender.errors import RecommenderError


class Payload(Protocol):
    """What a waiter is answered by: a future, or a part of a call of many."""

    def done(self) -> bool: ...  # noqa: D102 (as of a future)

    def set_result(self, ranking: Ranking, /) -> None: ...  # noqa: D102

    def set_exception(self, error: Exception, /) -> None: ...  # noqa: D102


_OUTCOMES = (Ranking, RecommenderError)


class Many:
    """Has its queries let in, as many at a time as `start` says, and is finished when each has an outcome.

    `let_in(call, most)` takes up to `most` of those who are `coming` and tells the call of each: `waits` if it was
    let in, `refused` if not. `count` is told the outcome of each that was let in.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        let_in: Callable[[Many, int], None],
        count: Callable[[Ranking | Exception], None],
        finished: asyncio.Future[list[Ranking | RecommenderError]],
    ) -> None:
        self.finished = finished
        self.coming: Iterator[tuple[int, Query]] = enumerate(queries)
        """The queries that were not let in yet, with their places."""
        self.waiting: dict[int, Waiter[Payload]] = {}
        """Who was let in and has no outcome yet, by its place."""
        self._let_in = let_in
        self._count = count
        self._outcomes: dict[int, Ranking | RecommenderError] = {}
        self._rows = len(queries)

    def start(self, most: int) -> None:
        """Have the first queries let in, `most` at most; one more will be for each that has its outcome."""
        self._let_in(self, most)
        self._finish_when_complete()

    def refused(self, place: int, refusal: RecommenderError) -> None:
        """Take the outcome of a query that was refused at the door."""
        self._outcomes[place] = refusal

    def settle(self, place: int, outcome: Ranking | Exception) -> None:
        """Take the outcome of a query that was let in, and let in another."""
        del self.waiting[place]
        self._count(outcome)
        if not isinstance(outcome, _OUTCOMES):
            raise TypeError(f"{outcome!r} is no outcome of a query")
        outcomes = self._outcomes
        outcomes[place] = outcome
        if len(outcomes) + len(self.waiting) < self._rows and not self.finished.done():
            self._let_in(self, 1)
        if not self.waiting:
            self._finish_when_complete()

    def give_up(self) -> tuple[list[Waiter[Payload]], int]:
        """Forget the queries that have no outcome: the waiters of those let in, and how many there are in all."""
        waiters = list(self.waiting.values())
        self.waiting.clear()
        return waiters, self._rows - len(self._outcomes)

    def _finish_when_complete(self) -> None:
        if len(self._outcomes) == self._rows and not self.finished.done():
            self.finished.set_result([self._outcomes[place] for place in range(self._rows)])


@dataclass(slots=True, eq=False)
class Part:
    """One query of a call of many, as what its waiter is answered by."""

    call: Many
    place: int

    def done(self) -> bool:
        """Whether it needs no answer: it has one, or its call was given up."""
        return self.place not in self.call.waiting

    def set_result(self, ranking: Ranking, /) -> None:
        """Answer it."""
        self.call.settle(self.place, ranking)

    def set_exception(self, error: Exception, /) -> None:
        """Tell it why there is no answer."""
        self.call.settle(self.place, error)
