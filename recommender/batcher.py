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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recommender.backlog import Backlog, Batch, Waiter
from recommender.call import Call, Payload
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
from recommender.statistics import BatchEnded, Counts, Statistics

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
    (seconds) the duration of a run. `clock` gives the seconds that deadlines are measured on. `observer` is told
    of every batch that has ended.
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
        observer: Callable[[BatchEnded], None] | None = None,
    ) -> None:
        self._engine = engine
        self._engine_timeout = engine_timeout
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._backlog: Backlog[Payload] = Backlog(max_batch_size, max_backlog, Estimator(cost), slots, deduplicate)
        self._counts = Counts()
        self._runs: dict[asyncio.Task[None], Batch[Payload]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._observer = observer
        self._pumping = False
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
        future: asyncio.Future[Ranking] = self._loop.create_future()
        waiter = self._admit(query, deadline, future)
        try:
            ranking = await future
        except asyncio.CancelledError:
            self._backlog.leave(waiter)
            self._note_idle()
            self._counts.cancelled += 1
            raise
        except RecommenderError as error:
            self._counts.end(error)
            raise
        self._counts.answered += 1
        return ranking

    async def submit_many(
        self, queries: Sequence[Query], *, deadline: float = math.inf
    ) -> list[Ranking | RecommenderError]:
        """The outcome of every query of one call, in their order: its ranking, or what `submit` would raise for it.

        At most a batch's worth of them waits at a time, so that a call of a thousand rows does not
        stand a thousand places ahead of a caller who comes after it with one.
        """
        call = Call(
            queries,
            lambda query, part: self._admit(query, deadline, part),
            self._counts.end,
            self._loop.create_future(),
        )
        for _ in range(self._backlog.max_batch_size):
            call.admit_next()
        try:
            return await call.finished
        except asyncio.CancelledError:
            waiters, given_up = call.give_up()
            for waiter in waiters:
                self._backlog.leave(waiter)
            self._counts.cancelled += given_up
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
        refused = self._backlog.refused
        return self._counts.record(
            waiting=len(self._backlog),
            running=sum(not waiter.payload.done() for batch in self._runs.values() for waiter in batch.waiters),
            refused_full=refused.full,
            refused_deadline=refused.deadline,
        )

    def __repr__(self) -> str:
        seen = self.statistics()
        state = "broken" if self._broken.done() else "closed" if self._closed else "open"
        return f"<Batcher {state}, {seen.waiting} waiting, {seen.running} running, {seen.answered} answered>"

    def _admit(self, query: Query, deadline: float, payload: Payload) -> Waiter[Payload]:
        """Let a caller in, and see to it that its batch is started and its deadline watched."""
        if self._closed is not None:
            self._counts.unavailable += 1
            raise self._closed
        now = self._clock()
        backlog = self._backlog
        waiter = backlog.admit(query, deadline, payload, now)
        if self._idle.is_set():
            self._idle.clear()
        if backlog.running < backlog.slots:
            self._pump_soon()
        if deadline < self._timer_at:
            self._set_timer(deadline, now)
        return waiter

    def _pump_soon(self) -> None:
        """Start batches in the loop's next turn: callers who come within one turn share one."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start every batch that has a slot."""
        self._pumping = False
        try:
            now = self._clock()
            self._expire(now)
            while (batch := self._backlog.next_batch(now)) is not None:
                run = self._loop.create_task(self._serve(batch))
                self._runs[run] = batch
                run.add_done_callback(self._reap)
            self._note_idle()
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._break(_bug(error))

    async def _serve(self, batch: Batch[Payload]) -> None:
        """Run one batch, answer its callers, free its slot, and start the next."""
        counts = self._counts
        counts.closed[batch.closed] += 1
        counts.rows_padded += batch.cells - sum(len(query.history) for query in batch.queries)
        for waiter in batch.waiters:
            counts.wait(batch.started - waiter.arrived)
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
        now = self._clock()
        self._backlog.finish(batch, now, learn=not failed)
        if self._observer is not None:
            ended = BatchEnded(
                rows=len(batch.queries),
                callers=len(batch.waiters),
                cells=batch.cells,
                closed=batch.closed,
                longest_wait=batch.started - batch.waiters[0].arrived,
                run=now - batch.started,
                failed=failed,
            )
            # In a turn of its own: what an observer raises is the loop's to report and nobody's fate.
            self._loop.call_soon(self._observer, ended)
        if len(self._backlog):
            self._pump_soon()

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
            counts.run(len(queries), self._clock() - started)
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
        outcome: Exception | None = self._closed
        if run.cancelled():
            if outcome is None:
                outcome = EngineError("the engine cancelled a run that nobody had given up")
                self._break(outcome)
        elif (error := run.exception()) is not None:
            # Its own callers get an error that nobody retries: a row that hangs engines must not go round.
            outcome = error if isinstance(error, EngineHungError) else _bug(error)
            self._break(outcome)
        for waiter in batch.waiters:
            if not waiter.payload.done():
                waiter.payload.set_exception(outcome or EngineError("a batch ended without an answer"))
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
                waiter.payload.set_exception(
                    DeadlineError("the deadline passed while the request waited for its answer")
                )

    def _set_timer(self, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        try:
            now = self._clock()
            self._expire(now)
            self._note_idle()
            if self._backlog.next_deadline < self._timer_at:
                self._set_timer(self._backlog.next_deadline, now)
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._break(_bug(error))


def _bug(error: BaseException) -> EngineError:
    """What everybody is told of an exception that nobody expected."""
    failure = EngineError(f"the batcher failed: {error!r}")
    failure.__cause__ = error
    return failure


def _for_caller(error: Exception) -> Exception:
    """The error a caller gets for a row of its own: its own fault as it is, everything else as the engine's."""
    if isinstance(error, InvalidRequestError | EngineError):
        return error
    failure = EngineError(f"the engine failed: {error!r}")
    failure.__cause__ = error
    return failure
