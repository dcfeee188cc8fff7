"""The async shell around the backlog: callers submit, batches run, each caller is answered exactly once.

`submit` puts a caller into the backlog and waits on its future. Whenever a caller arrives or a slot becomes free,
`_pump` starts the next batch of the backlog; `runs.py` runs it. If the engine is lost, every caller gets an error, and
`broken` reports it to the owner.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Waiter
from recommender.batching.cost import Cost, Estimator
from recommender.batching.gathering import Gathering
from recommender.batching.many import Door, Many, Payload
from recommender.batching.runs import Engine, Runs, Tracer, bug
from recommender.batching.statistics import ANSWERED, BatchEnded, Counts, Outcome, Statistics
from recommender.batching.timer import DeadlineTimer
from recommender.domain import Query, Ranking
from recommender.errors import DeadlineError, EngineError, RecommenderError, UnavailableError


class Batcher:
    """Answers queries in batches; one object serves one engine, on one event loop.

    `max_backlog` bounds the waiting callers, `slots` the batches that run at once, `engine_timeout` (seconds) the
    duration of a run, `max_wait` (seconds) how long a batch gathers callers while they keep arriving. `clock` gives the
    seconds that deadlines are measured on. `observer` gets every batch that has ended, `tracer` follows sampled
    callers.
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
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # A batch runs for all its callers, so it must not run in the context of the one that starts it.
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
        self._runs = Runs(
            engine,
            self._backlog,
            timeout=engine_timeout,
            clock=clock,
            counts=self._counts,
            observer=observer,
            tracer=tracer,
            freed=self._slot_freed,
            lost=self._break,
            ended=self._note_idle,
            closed=lambda: self._closed,
        )
        self._staging = self._runs.staging
        self._timer = DeadlineTimer(
            expire=self._expire,
            next_deadline=lambda: self._backlog.next_deadline,
            failed=lambda error: self._break(bug(error)),
            clock=clock,
            context=self._context,
        )
        admit = partial(self._admit, one_of_many=True)
        self._door = Door(max_batch_size, clock, admit, self._admitted, self._leave, self._counts, self._note_idle)
        self._gathering = Gathering(max_wait, max_batch_size)
        self._tracer = tracer
        self._pumping = False
        self._closed: UnavailableError | None = None
        self._broken: asyncio.Future[EngineError] = self._loop.create_future()
        self._idle = asyncio.Event()

    async def submit(self, query: Query, *, deadline: float = math.inf) -> Ranking:
        """Rank a query; `deadline` is a time on the batcher's clock.

        Raises BacklogFullError or DeadlineError if it is not admitted, DeadlineError if the deadline passes while the
        query waits, InvalidRequestError if the model finds the query at fault, EngineError if the engine fails on it,
        UnavailableError once the batcher is closed or broken.
        """
        future: asyncio.Future[Ranking] = self._loop.create_future()
        now = self._clock()
        waiter = self._admit(query, deadline, future, now)
        self._admitted(deadline, now)
        if self._tracer is not None:
            waiter.trace = self._tracer.caller(waiter.arrived)
        try:
            ranking = await future
        except asyncio.CancelledError:
            self._leave([waiter], 1)
            raise
        except RecommenderError as error:
            self._counts.end(error)
            raise
        self._outcomes[ANSWERED] += 1
        return ranking

    async def submit_many(
        self, queries: Sequence[Query], *, deadline: float = math.inf
    ) -> list[Ranking | RecommenderError]:
        """Return the outcome of every query, in their order: its ranking, or what `submit` would raise for it."""
        trace = self._tracer.caller(self._clock()) if self._tracer is not None else None
        return await Many(queries, deadline, trace, self._door).outcomes()

    async def drain(self) -> None:
        """Wait until no caller waits or is to be admitted, and nothing runs.

        Callers may still submit; the owner bounds the wait.
        """
        if self._busy():
            self._idle.clear()
            await self._idle.wait()

    async def broken(self) -> EngineError:
        """Wait until the engine is lost, and return why. A broken batcher never works again."""
        return await asyncio.shield(self._broken)

    async def close(self) -> None:
        """Refuse every caller from now on, fail the waiting ones, and end the tasks."""
        self._shut(UnavailableError("the server is shutting down; call another one"))
        await self._runs.cancel()

    @property
    def waiting(self) -> int:
        """Number of callers that wait for a batch."""
        return len(self._backlog)

    @property
    def max_batch_size(self) -> int:
        """Rows of a full batch."""
        return self._backlog.max_batch_size

    def statistics(self) -> Statistics:
        """Everything up to now; the record does not change afterwards."""
        return self._counts.record(waiting=len(self._backlog), running=self._runs.callers)

    def __repr__(self) -> str:
        seen = self.statistics()
        state = "broken" if self._broken.done() else "closed" if self._closed else "open"
        return f"<Batcher {state}, {seen.waiting} waiting, {seen.running} running, {seen.answered} answered>"

    def _admit(
        self, query: Query, deadline: float, payload: Payload, now: float, *, one_of_many: bool = False
    ) -> Waiter[Payload]:
        """Admit a caller, or count and raise its refusal; `_admitted` must follow."""
        if self._closed is not None:
            self._outcomes[Outcome.UNAVAILABLE] += 1
            raise UnavailableError(str(self._closed))  # its own: an error raised twice keeps both tracebacks
        return self._backlog.admit(query, deadline, payload, now, one_of_many=one_of_many)

    def _admitted(self, deadline: float, now: float) -> None:
        """Start or stage the batch of callers that were just admitted, and watch their deadline."""
        backlog = self._backlog
        if backlog.running >= backlog.slots:
            self._staging.look(now)
        elif not self._pumping:
            # As soon as callers stop coming: in the loop's next turn at the earliest.
            self._pumping = True
            self._gathering.begin(now)
            self._loop.call_soon(self._pump, context=self._context)
        if deadline < self._timer.at:
            self._timer.watch(deadline, now)

    def _leave(self, waiters: Sequence[Waiter[Payload]], cancelled: int) -> None:
        """Remove callers that no longer wait, and count how many requests were cancelled with them."""
        self._staging.leave(waiters)
        self._outcomes[Outcome.CANCELLED] += cancelled
        self._note_idle()

    def _pump(self) -> None:
        """Start every batch that has a slot, unless callers keep coming."""
        try:
            now = self._clock()
            if self._gathering.goes_on(len(self._backlog), now, self._backlog.hurry(now)):
                self._loop.call_soon(self._pump, context=self._context)
                return
            self._pumping = False
            self._expire(now)
            self._staging.fill(now)
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._break(bug(error))

    def _slot_freed(self, now: float) -> None:
        """Start the next batch in a slot that has come free."""
        self._expire(now)
        self._staging.slot_freed()
        if len(self._backlog) and not self._pumping:
            self._pumping = True
            self._gathering.begin(now)
            self._pump()

    def _expire(self, now: float) -> None:
        """Answer callers whose deadline has passed."""
        for waiter in self._staging.expire(now):
            if not waiter.payload.done():
                waiter.payload.set_exception(
                    DeadlineError("the deadline passed while the request waited for its answer")
                )
        self._note_idle()

    def _break(self, error: EngineError) -> None:
        """Stop for good: the engine cannot be trusted any more."""
        if not self._broken.done():
            self._broken.set_result(error)
        self._shut(UnavailableError("the server has lost its engine and restarts; call another one"))

    def _shut(self, error: UnavailableError) -> None:
        if self._closed is None:
            self._closed = error
        for waiter in self._staging.clear():
            if not waiter.payload.done():
                waiter.payload.set_exception(self._closed)
        self._timer.cancel()
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._busy():
            self._idle.set()

    def _busy(self) -> bool:
        return bool(len(self._backlog) or len(self._runs) or self._door.coming)
