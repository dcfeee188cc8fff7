"""The async shell around the backlog: callers submit, batches run, each caller is answered exactly once.

`submit` puts a caller into the backlog and waits on a future of its own. Whenever a caller comes or
a slot comes free, `_pump` starts what the backlog says is next, one task per batch. A batch that
fails is halved and tried again, so that only the guilty row fails. A run that does not end
within the engine timeout breaks the batcher: every caller is told, and `broken` tells the owner.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from recommender.backlog import Backlog, Batch, CloseReason, Waiter
from recommender.cost import Cost, Estimator
from recommender.domain import Query, Ranking
from recommender.errors import (
    DeadlineError,
    EngineError,
    EngineHungError,
    InvalidRequestError,
    RecommenderError,
    UnavailableError,
)

PROBE = Query((0,), 1)
"""A row that every model can answer: item 0 exists in every catalogue."""


class Engine(Protocol):
    """What the batcher needs of an engine."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """Rank for every query, in their order.

        Raises InvalidRequestError if the only query of the batch is at fault, anything else if the run failed.
        """

    def terminate(self) -> None:
        """Ask the runs under way to end early; returns at once."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the batcher has done so far. Times are sums in seconds; every ended request is in one count.

    `answered`, `refused_full`, `refused_deadline`, `expired`, `cancelled`, `invalid`, `failed` and
    `unavailable` together are all requests that have ended; `waiting` and `running` count the others.
    """

    waiting: int
    running: int
    answered: int
    refused_full: int
    refused_deadline: int
    expired: int
    cancelled: int
    invalid: int
    failed: int
    unavailable: int
    batches: Mapping[int, int]
    """How many batches there were of each number of rows."""
    closed: Mapping[CloseReason, int]
    rows_run: int
    rows_padded: int
    """Cells that held no item of any history."""
    split: int
    """Batches that failed and were halved."""
    wait_seconds: float
    run_seconds: float


@dataclass(slots=True)
class _Counts:
    answered: int = 0
    expired: int = 0
    cancelled: int = 0
    invalid: int = 0
    failed: int = 0
    unavailable: int = 0
    rows_run: int = 0
    rows_padded: int = 0
    split: int = 0
    wait_seconds: float = 0.0
    run_seconds: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)
    closed: Counter[CloseReason] = field(default_factory=Counter)


class Payload(Protocol):
    """What a waiter is answered by: a future, or a part of a call of many."""

    def done(self) -> bool: ...  # noqa: D102 (as of a future)

    def set_result(self, ranking: Ranking, /) -> None: ...  # noqa: D102

    def set_exception(self, error: Exception, /) -> None: ...  # noqa: D102


class _Call:
    """A call of many queries: lets them in one by one, and is finished when each has an outcome."""

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
        if not isinstance(outcome, Ranking | RecommenderError):
            raise TypeError(f"{outcome!r} is no outcome of a query")
        self._outcomes[place] = outcome
        self._finish_when_complete()
        self.admit_next()

    def waits(self, place: int) -> bool:
        """Whether a query was let in and has no outcome yet."""
        return place in self._waiters

    def give_up(self) -> list[Waiter[Payload]]:
        """Forget the queries that have no outcome; those that were let in are returned."""
        waiters = list(self._waiters.values())
        self._waiters.clear()
        self._next = len(self._queries)
        return waiters

    def _finish_when_complete(self) -> None:
        if len(self._outcomes) == len(self._queries) and not self.finished.done():
            self.finished.set_result([self._outcomes[place] for place in range(len(self._queries))])


@dataclass(slots=True, frozen=True)
class _Part:
    """One query of a call of many, as what its waiter is answered by."""

    call: _Call
    place: int

    def done(self) -> bool:
        return not self.call.waits(self.place)

    def set_result(self, ranking: Ranking, /) -> None:
        self.call.settle(self.place, ranking)

    def set_exception(self, error: Exception, /) -> None:
        self.call.settle(self.place, error)


@dataclass(slots=True)
class _Row:
    """One query of a batch with everyone who waits for it."""

    query: Query
    waiters: list[Waiter[Payload]]

    def wanted(self, now: float) -> bool:
        return any(not waiter.payload.done() and waiter.deadline > now for waiter in self.waiters)

    def answer(self, ranking: Ranking) -> None:
        for waiter in self.waiters:
            if not waiter.payload.done():
                waiter.payload.set_result(ranking)

    def fail(self, error: Exception) -> None:
        for waiter in self.waiters:
            if not waiter.payload.done():
                waiter.payload.set_exception(error)


class Batcher:
    """Answers queries in batches; one object serves one engine, on one event loop.

    `max_backlog` bounds the callers who wait, `slots` the batches that run at once, `engine_timeout`
    (seconds) the duration of a run. `clock` gives the seconds that deadlines are measured on.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_size: int,
        max_backlog: int,
        engine_timeout: float,
        cost: Cost,
        slots: int = 1,
        deduplicate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._engine_timeout = engine_timeout
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._backlog: Backlog[Payload] = Backlog(max_batch_size, max_backlog, Estimator(cost), slots, deduplicate)
        self._counts = _Counts()
        self._runs: dict[asyncio.Task[None], Batch[Payload]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._closed: UnavailableError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._broken: asyncio.Future[EngineError] = self._loop.create_future()

    async def submit(self, query: Query, *, deadline: float = math.inf) -> Ranking:
        """The ranking for a query; `deadline` is a time on the batcher's clock.

        Raises BacklogFullError or DeadlineError at the door, DeadlineError if the deadline comes
        while the query waits, InvalidRequestError if the model finds the query at fault, EngineError if the
        engine fails on it, UnavailableError once the batcher is closed or broken.
        """
        now = self._clock()
        future: asyncio.Future[Ranking] = self._loop.create_future()
        waiter = self._admit(query, deadline, future, now)
        counts = self._counts
        try:
            if self._backlog.running < self._backlog.slots:
                self._pump()
            elif deadline < self._timer_at:
                self._set_timer(deadline, now)
            ranking = await future
        except asyncio.CancelledError:
            self._backlog.leave(waiter)
            self._note_idle()
            counts.cancelled += 1
            raise
        except RecommenderError as error:
            self._count(error)
            raise
        counts.answered += 1
        return ranking

    async def submit_many(
        self, queries: Sequence[Query], *, deadline: float = math.inf
    ) -> list[Ranking | RecommenderError]:
        """The outcome of every query of one call, in their order: its ranking, or what `submit` would raise for it.

        At most a batch's worth of them waits at a time, so that a call of a thousand rows does not
        stand a thousand places ahead of a caller who comes after it with one.
        """
        call = _Call(
            queries,
            lambda query, part: self._admit(query, deadline, part, self._clock()),
            self._count,
            self._loop.create_future(),
        )
        for _ in range(self._backlog.max_batch_size):
            call.admit_next()
        self._pump()
        try:
            return await call.finished
        except asyncio.CancelledError:
            for waiter in call.give_up():
                self._backlog.leave(waiter)
                self._counts.cancelled += 1
            self._note_idle()
            raise

    async def drain(self) -> None:
        """Wait until nobody waits and nothing runs. Callers may still submit; the owner bounds the wait."""
        await self._idle.wait()

    async def broken(self) -> EngineError:
        """Wait until the engine is lost, and return why. A broken batcher never works again."""
        return await asyncio.shield(self._broken)

    async def close(self) -> None:
        """Refuse every caller from now on, fail those who still wait, and end the tasks."""
        self._shut(UnavailableError("the server is shutting down; call another one"))
        runs = list(self._runs)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    def statistics(self) -> Statistics:
        """What was done so far; the record does not change afterwards."""
        counts = self._counts
        refused = self._backlog.refused
        return Statistics(
            waiting=len(self._backlog),
            running=sum(not waiter.payload.done() for batch in self._runs.values() for waiter in batch.waiters),
            answered=counts.answered,
            refused_full=refused.full,
            refused_deadline=refused.deadline,
            expired=counts.expired,
            cancelled=counts.cancelled,
            invalid=counts.invalid,
            failed=counts.failed,
            unavailable=counts.unavailable,
            batches=MappingProxyType(dict(counts.batches)),
            closed=MappingProxyType(dict(counts.closed)),
            rows_run=counts.rows_run,
            rows_padded=counts.rows_padded,
            split=counts.split,
            wait_seconds=counts.wait_seconds,
            run_seconds=counts.run_seconds,
        )

    def __repr__(self) -> str:
        seen = self.statistics()
        state = "broken" if self._broken.done() else "closed" if self._closed else "open"
        return f"<Batcher {state}, {seen.waiting} waiting, {seen.running} running, {seen.answered} answered>"

    def _admit(self, query: Query, deadline: float, payload: Payload, now: float) -> Waiter[Payload]:
        if self._closed is not None:
            self._counts.unavailable += 1
            raise self._closed
        return self._backlog.admit(query, deadline, payload, now)

    def _count(self, outcome: Ranking | Exception) -> None:
        """Count how a request that was admitted has ended."""
        counts = self._counts
        if isinstance(outcome, Ranking):
            counts.answered += 1
        elif isinstance(outcome, DeadlineError):
            counts.expired += 1
        elif isinstance(outcome, InvalidRequestError):
            counts.invalid += 1
        elif isinstance(outcome, UnavailableError):
            counts.unavailable += 1
        else:
            counts.failed += 1

    def _pump(self) -> None:
        """Start every batch that has a slot."""
        now = self._clock()
        self._expire(now)
        while (batch := self._backlog.next_batch(now)) is not None:
            run = self._loop.create_task(self._serve(batch))
            self._runs[run] = batch
            run.add_done_callback(self._reap)
        self._note_idle()
        if self._backlog.next_deadline < self._timer_at:
            self._set_timer(self._backlog.next_deadline, now)

    async def _serve(self, batch: Batch[Payload]) -> None:
        """Run one batch, answer its callers, free its slot, and start the next."""
        counts = self._counts
        counts.closed[batch.closed] += 1
        counts.rows_padded += batch.cells - sum(len(query.history) for query in batch.queries)
        for waiter in batch.waiters:
            counts.wait_seconds += batch.started - waiter.arrived
        failed = False
        try:
            rankings = await self._run(batch.queries)
        except EngineHungError:
            raise  # to `_reap`, which breaks the batcher
        except Exception as error:  # noqa: BLE001 (whatever an engine raises is an engine failure)
            failed = True
            await self._isolate(batch, error)
        else:
            for waiter, row in zip(batch.waiters, batch.rows, strict=True):
                if not waiter.payload.done():
                    waiter.payload.set_result(rankings[row])
        self._backlog.finish(batch, self._clock(), learn=not failed)
        self._pump()

    async def _run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """One engine run within the timeout; an answer that does not fit the question is a failure."""
        counts = self._counts
        started = self._clock()
        timeout = asyncio.timeout(self._engine_timeout)
        try:
            async with timeout:
                rankings = await self._engine.run(queries)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            self._engine.terminate()
            raise EngineHungError(
                f"a run of {len(queries)} rows did not end within {self._engine_timeout * 1e3:.0f} ms"
            ) from error
        finally:
            counts.run_seconds += self._clock() - started
            counts.rows_run += len(queries)
            counts.batches[len(queries)] += 1
        if len(rankings) != len(queries):
            raise EngineError(f"the engine returned {len(rankings)} rankings for {len(queries)} queries")
        return rankings

    async def _isolate(self, batch: Batch[Payload], error: Exception) -> None:
        """Halve a failed batch until the guilty rows stand alone.

        Halving takes ⌈log2 rows⌉ levels at most. When both halves of a batch fail, a row known to be
        good is tried: if that fails too, the engine is at fault and all rest is given up at once.
        """
        rows = [_Row(query, []) for query in batch.queries]
        for waiter, row in zip(batch.waiters, batch.rows, strict=True):
            rows[row].waiters.append(waiter)
        parts: list[tuple[list[_Row], Exception]] = [(rows, error)]
        while parts:
            part, error = parts.pop()
            if len(part) == 1:
                part[0].fail(_for_caller(error))
                continue
            self._counts.split += 1
            middle = len(part) // 2
            halves = (part[:middle], part[middle:])
            failed = [(half, why) for half in halves if (why := await self._try(half)) is not None]
            if len(failed) == len(halves) and await self._fails(PROBE):
                for given_up, _ in (*parts, (part, error)):
                    for each in given_up:
                        each.fail(_for_caller(error))
                return
            parts.extend(failed)

    async def _try(self, rows: list[_Row]) -> Exception | None:
        """Run those rows that are still wanted and answer them; the error if that failed."""
        now = self._clock()
        for row in rows:
            if not row.wanted(now):
                row.fail(DeadlineError("the deadline passed while a failed batch was tried again"))
        wanted = [row for row in rows if row.wanted(now)]
        if not wanted:
            return None
        try:
            rankings = await self._run([row.query for row in wanted])
        except EngineHungError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever an engine raises is an engine failure)
            rows[:] = wanted
            return error
        for row, ranking in zip(wanted, rankings, strict=True):
            row.answer(ranking)
        return None

    async def _fails(self, query: Query) -> bool:
        try:
            await self._run([query])
        except EngineHungError:
            raise
        except Exception:  # noqa: BLE001 (whatever an engine raises is an engine failure)
            return True
        return False

    def _reap(self, run: asyncio.Task[None]) -> None:
        """Read the result of a batch's task: a task that died in silence would strand its callers."""
        batch = self._runs.pop(run)
        error = None if run.cancelled() else run.exception()
        outcome: Exception | None = self._closed
        if error is not None:
            # Its own callers get an error that nobody retries: a row that hangs engines must not go round.
            outcome = error if isinstance(error, EngineHungError) else EngineError(f"the batcher failed: {error!r}")
            outcome.__cause__ = error
            self._break(outcome)
        for waiter in batch.waiters:
            if not waiter.payload.done():
                waiter.payload.set_exception(outcome or EngineError("the batch was given up"))
        self._note_idle()

    def _break(self, error: EngineError) -> None:
        """Give up for good: the engine cannot be trusted to answer anybody."""
        if not self._broken.done():
            self._broken.set_result(error)
        self._shut(UnavailableError("the server has lost its engine and restarts; call another one"))

    def _shut(self, error: UnavailableError) -> None:
        if self._closed is None:
            self._closed = error
        for waiter in self._backlog.clear():
            if not waiter.payload.done():
                waiter.payload.set_exception(self._closed)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._note_idle()

    def _note_idle(self) -> None:
        if len(self._backlog) or self._runs:
            self._idle.clear()
        else:
            self._idle.set()

    def _expire(self, now: float) -> None:
        for waiter in self._backlog.expire(now):
            if not waiter.payload.done():
                waiter.payload.set_exception(DeadlineError("the deadline passed while the request waited"))

    def _set_timer(self, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        now = self._clock()
        self._expire(now)
        self._note_idle()
        if self._backlog.next_deadline < math.inf:
            self._set_timer(self._backlog.next_deadline, now)


def _for_caller(error: Exception) -> Exception:
    """The error a caller gets for a row of its own: its own fault as it is, everything else as the engine's."""
    if isinstance(error, InvalidRequestError | EngineError):
        return error
    failure = EngineError(f"the engine failed: {error!r}")
    failure.__cause__ = error
    return failure
