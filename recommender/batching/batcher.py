"""The async shell around the backlog: callers submit, batches run, each caller is answered exactly once.

`submit` puts a caller into the backlog and waits on a future of its own. Whenever a caller comes or
a slot comes free, `_pump` starts what the backlog says is next, one task per batch. A batch that
fails is halved and tried again, so that only the guilty row fails. A run that does not end
within the engine timeout breaks the batcher: every caller is told, and `broken` tells the owner.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Batch, Waiter
from recommender.batching.cost import Cost, Estimator
from recommender.batching.gathering import Gathering
from recommender.batching.halving import Halving
from recommender.batching.many import Many, Part, Payload
from recommender.batching.staging import StagedRun, Staging
from recommender.batching.statistics import ANSWERED, BatchEnded, Counts, Outcome, Statistics
from recommender.domain import Query, Ranking
from recommender.errors import (
    DeadlineError,
    EngineError,
    EngineHungError,
    RecommenderError,
    UnavailableError,
)


class Engine(Protocol):
    """What the batcher needs of an engine."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """Rank for every query, in their order.

        Raises InvalidRequestError if the only query of the batch is at fault, anything else if the run failed.
        """

    def stage(self, queries: Sequence[Query]) -> StagedRun | None:
        """Have a run ready that begins when one under way has ended; None if the engine wants none ready."""

    def terminate(self) -> None:
        """Ask the runs under way to end early; returns at once."""


class Tracer(Protocol):
    """Who follows sampled callers through their batches; it must not raise."""

    def caller(self, now: float) -> object | None:
        """What the caller on whose behalf this runs is traced by, if it is; it waits from now on."""

    def started(self, batch: Batch[Payload]) -> None:
        """A batch starts: look at the `trace` of its waiters."""

    def ended(self, batch: Batch[Payload], now: float, *, failed: bool) -> None:
        """It has ended; its callers learn of it in a later turn of the loop."""


class Batcher:
    """Answers queries in batches; one object serves one engine, on one event loop.

    `max_backlog` bounds the callers who wait, `slots` the batches that run at once, `engine_timeout`
    (seconds) the duration of a run, `max_wait` (seconds) how long a batch gathers callers while they
    keep coming. `clock` gives the seconds that deadlines are measured on. `observer` is told
    of every batch that has ended, `tracer` follows those callers who are sampled.
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
        max_wait: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        observer: Callable[[BatchEnded], None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine = engine
        self._engine_timeout = engine_timeout
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # A batch runs on behalf of everybody in it: what is bound for the one caller that starts it is not its context.
        self._context = contextvars.copy_context()
        self._counts = Counts()
        self._outcomes = self._counts.outcomes
        self._backlog: Backlog[Payload] = Backlog(
            max_batch_size,
            max_backlog,
            Estimator(cost),
            slots=slots,
            deduplicate=deduplicate,
            outcomes=self._outcomes,
        )
        self._halving = Halving(self._run, clock, self._counts)
        self._runs: dict[asyncio.Task[None], Batch[Payload]] = {}
        self._staging = Staging(self._backlog, engine.stage, self._start, clock)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._observer = observer
        self._gathering = Gathering(max_wait, max_batch_size)
        self._tracer = tracer
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
        now = self._clock()
        waiter = self._admit(query, deadline, future, now)
        self._see_to(deadline, now)
        if self._tracer is not None:
            waiter.trace = self._tracer.caller(waiter.arrived)
        try:
            ranking = await future
        except asyncio.CancelledError:
            self._leave([waiter])
            self._note_idle()
            self._outcomes[Outcome.CANCELLED] += 1
            raise
        except RecommenderError as error:
            self._counts.end(error)
            raise
        self._outcomes[ANSWERED] += 1
        return ranking

    async def submit_many(
        self, queries: Sequence[Query], *, deadline: float = math.inf
    ) -> list[Ranking | RecommenderError]:
        """The outcome of every query of one call, in their order: its ranking, or what `submit` would raise for it.

        At most a batch's worth of them waits at a time, so that a call of a thousand rows does not
        stand a thousand places ahead of a caller who comes after it with one.
        """
        trace = self._tracer.caller(self._clock()) if self._tracer is not None else None

        def let_in(call: Many, most: int) -> None:
            self._let_in(call, most, deadline, trace)

        call = Many(queries, let_in, self._counts.end, self._loop.create_future())
        call.start(self._backlog.max_batch_size)
        try:
            return await call.finished
        except asyncio.CancelledError:
            waiters, given_up = call.give_up()
            self._leave(waiters)
            self._outcomes[Outcome.CANCELLED] += given_up
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

    @property
    def waiting(self) -> int:
        """How many callers wait for a batch."""
        return len(self._backlog)

    @property
    def max_batch_size(self) -> int:
        """How many rows a batch has at most."""
        return self._backlog.max_batch_size

    def statistics(self) -> Statistics:
        """What was done so far; the record does not change afterwards."""
        return self._counts.record(
            waiting=len(self._backlog),
            running=sum(not waiter.payload.done() for batch in self._runs.values() for waiter in batch.waiters),
        )

    def __repr__(self) -> str:
        seen = self.statistics()
        state = "broken" if self._broken.done() else "closed" if self._closed else "open"
        return f"<Batcher {state}, {seen.waiting} waiting, {seen.running} running, {seen.answered} answered>"

    def _admit(self, query: Query, deadline: float, payload: Payload, now: float) -> Waiter[Payload]:
        """Let a caller in; `_see_to` it afterwards."""
        if self._closed is not None:
            self._outcomes[Outcome.UNAVAILABLE] += 1
            raise UnavailableError(str(self._closed))  # its own: an error raised twice keeps both tracebacks
        return self._backlog.admit(query, deadline, payload, now)

    def _let_in(self, call: Many, most: int, deadline: float, trace: object | None) -> None:
        """Admit the next queries of a call that are not refused at the door, `most` at most."""
        now = self._clock()
        room = most
        for place, query in call.coming:
            try:
                waiter = self._admit(query, deadline, Part(call, place), now)
            except RecommenderError as refusal:
                call.refused(place, refusal)
                continue
            waiter.trace = trace
            call.waiting[place] = waiter
            room -= 1
            if not room:
                break
        if room < most:
            self._see_to(deadline, now)

    def _see_to(self, deadline: float, now: float) -> None:
        """See to it that the batch of those just admitted is started, and their deadline watched."""
        if self._idle.is_set():
            self._idle.clear()
        if self._backlog.running < self._backlog.slots:
            self._pump_soon()
        else:
            self._staging.look(now)
        if deadline < self._timer_at:
            self._set_timer(deadline, now)

    def _pump_soon(self) -> None:
        """Start batches as soon as callers stop coming, in the loop's next turn at the earliest."""
        if not self._pumping:
            self._begin_pumping(self._clock())
            self._loop.call_soon(self._pump, context=self._context)

    def _begin_pumping(self, now: float) -> None:
        self._pumping = True
        self._gathering.begin(now)

    def _pump(self) -> None:
        """Start every batch that has a slot."""
        try:
            now = self._clock()
            if self._gathering.goes_on(len(self._backlog), now, self._backlog.hurry(now)):
                self._loop.call_soon(self._pump, context=self._context)
                return
            self._pumping = False
            self._expire(now)
            while (batch := self._backlog.next_batch(now)) is not None:
                self._start(batch)
            self._staging.look(now)
            self._note_idle()
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._break(_bug(error))

    def _start(self, batch: Batch[Payload], staged: StagedRun | None = None) -> None:
        self._staging.look_again()
        if staged is None:
            self._staging.pause()
        run = self._loop.create_task(self._serve(batch, staged))
        self._runs[run] = batch
        run.add_done_callback(self._reap)

    def _leave(self, waiters: Sequence[Waiter[Payload]]) -> None:
        """Take callers out who do not wait any longer."""
        self._staging.without(waiters)
        for waiter in waiters:
            self._backlog.leave(waiter)

    async def _serve(self, batch: Batch[Payload], staged: StagedRun | None) -> None:
        """Run one batch, free its slot, start the next, and answer its callers."""
        counts = self._counts
        counts.start(batch)
        if staged is None:
            self._loop.call_soon(self._engine_has_it)
        if self._tracer is not None:
            self._tracer.started(batch)
        try:
            rankings = await self._run(batch.queries, staged)
        except EngineHungError:
            raise  # to `_reap`, which breaks the batcher
        except Exception as error:  # noqa: BLE001 (whatever an engine raises is an engine failure)
            await self._isolate(batch, error)
            self._end(batch, failed=True)
            return
        # First, so that the engine has work while the loop has it: answering a batch takes about as long as running it.
        self._end(batch, failed=False)
        for waiter, row in zip(batch.waiters, batch.rows, strict=True):
            if not waiter.payload.done():
                waiter.payload.set_result(rankings[row])

    def _engine_has_it(self) -> None:
        """A batch that was started is with the engine, so that another one can be staged behind it."""
        try:
            self._staging.resume()
            self._staging.look(self._clock())
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._break(_bug(error))

    async def _isolate(self, batch: Batch[Payload], error: Exception) -> None:
        """Find the guilty rows of a batch; until then nobody else's run comes between."""
        self._staging.pause()
        self._staging.take_back()
        try:
            await self._halving.isolate(batch, error)
        finally:
            self._staging.resume()

    def _end(self, batch: Batch[Payload], *, failed: bool) -> None:
        """Free the slot of a batch that needs the engine no more, tell who wants to know, and start the next."""
        now = self._clock()
        self._backlog.finish(batch, now, learn=not failed)
        if self._tracer is not None:
            self._tracer.ended(batch, now, failed=failed)
        if self._observer is not None:
            ended = BatchEnded(
                number=batch.number,
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
        self._expire(now)
        self._staging.slot_freed()
        if len(self._backlog) and not self._pumping:
            self._begin_pumping(now)
            self._pump()

    async def _run(self, queries: Sequence[Query], staged: StagedRun | None = None) -> Sequence[Ranking]:
        """One engine run within the timeout; an answer that does not fit the question is a failure."""
        counts = self._counts
        began = staged.began if staged is not None else None
        started = self._clock() if began is None else began
        timeout = asyncio.timeout(self._engine_timeout)
        try:
            async with timeout:
                rankings = await (self._engine.run(queries) if staged is None else staged.result())
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
        self._staging.take_back()
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
        self._staging.expire(now)
        for waiter in self._backlog.expire(now):
            if not waiter.payload.done():
                waiter.payload.set_exception(
                    DeadlineError("the deadline passed while the request waited for its answer")
                )

    def _set_timer(self, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - now, 0.0), self._on_timer, context=self._context)

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
