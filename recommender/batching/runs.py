"""The runs of batches, each in a task: from its slot to the answers of its callers.

A batch that fails is halved and retried, so that only the faulty row fails. A run that does not end within the engine
timeout loses the engine: its callers get an error, and `lost` reports it to the batcher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Batch
from recommender.batching.faults import FaultyRowsError
from recommender.batching.halving import Halving
from recommender.batching.many import Payload, answer
from recommender.batching.staging import StagedRun, Staging
from recommender.batching.statistics import BatchEnded, Counts
from recommender.domain import Query, Ranking
from recommender.errors import EngineError, EngineHungError, UnavailableError


class Engine(Protocol):
    """The part of an engine that the batcher uses."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """Rank for every query, in their order.

        Raises InvalidRequestError if the only query of the batch is at fault, FaultyRowsError if some rows have no
        answer, anything else if the run failed.
        """

    def stage(self, queries: Sequence[Query]) -> StagedRun | None:
        """Have a run ready that begins when one under way has ended; None if the engine wants none ready."""

    def terminate(self) -> None:
        """Ask the runs under way to end early; returns at once."""


class Tracer(Protocol):
    """Follows sampled callers through their batches; must not raise."""

    def caller(self, now: float) -> object | None:
        """The trace of the caller for which this runs and which waits from now on; None if it is not sampled."""

    def started(self, batch: Batch[Payload]) -> None:
        """A batch starts: look at the `trace` of its waiters."""

    def ended(self, batch: Batch[Payload], now: float, *, failed: bool) -> None:
        """It has ended; its callers learn of it in a later turn of the loop."""


class Runs:
    """Runs the batches of a `backlog` on an engine, none longer than `timeout` seconds.

    `freed(now)` is called when a slot has come free, `lost(error)` when the engine cannot be trusted any longer,
    `ended()` when a task has ended. `closed()` gives the error for callers of a cancelled run; None while the
    batcher is open.
    """

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog[Payload],
        *,
        timeout: float,
        clock: Callable[[], float],
        counts: Counts,
        observer: Callable[[BatchEnded], None] | None,
        tracer: Tracer | None,
        freed: Callable[[float], None],
        lost: Callable[[EngineError], None],
        ended: Callable[[], None],
        closed: Callable[[], UnavailableError | None],
    ) -> None:
        self.staging = Staging(backlog, engine.stage, self._start, clock)
        self._engine = engine
        self._backlog = backlog
        self._timeout = timeout
        self._clock = clock
        self._counts = counts
        self._observer = observer
        self._tracer = tracer
        self._freed = freed
        self._lost = lost
        self._ended = ended
        self._closed = closed
        self._halving = Halving(self._run, clock, counts)
        self._loop = asyncio.get_running_loop()
        self._batches: dict[asyncio.Task[None], Batch[Payload]] = {}

    def __len__(self) -> int:
        """Number of batches whose tasks have not ended."""
        return len(self._batches)

    @property
    def callers(self) -> int:
        """Number of callers in these batches without an answer yet."""
        return sum(not waiter.payload.done() for batch in self._batches.values() for waiter in batch.waiters)

    async def cancel(self) -> None:
        """Cancel every run, and wait until their callers are answered."""
        tasks = list(self._batches)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, batch: Batch[Payload], staged: StagedRun | None) -> None:
        task = self._loop.create_task(self._serve(batch, staged))
        self._batches[task] = batch
        task.add_done_callback(self._reap)

    async def _serve(self, batch: Batch[Payload], staged: StagedRun | None) -> None:
        """Run one batch, free its slot, and answer its callers."""
        self._counts.start(batch)
        if staged is None:
            self._loop.call_soon(self._reached)
        if self._tracer is not None:
            self._tracer.started(batch)
        try:
            rankings = await self._run(batch.queries, staged)
        except EngineHungError:
            raise  # to `_reap`, which gives up the engine
        except FaultyRowsError as error:
            self._end(batch, failed=False)
            for waiter, row in zip(batch.waiters, batch.rows, strict=True):
                answer(waiter.payload, error.outcomes[row])
            return
        except Exception as error:  # noqa: BLE001 (any exception of an engine is an engine failure)
            with self.staging.retrying():
                await self._halving.isolate(batch, error)
            self._end(batch, failed=True)
            return
        # First, so that the engine has work while the loop has it: answering a batch takes about as long as running it.
        self._end(batch, failed=False, run_ended=None if staged is None else staged.ended)
        for waiter, row in zip(batch.waiters, batch.rows, strict=True):
            if not waiter.payload.done():
                waiter.payload.set_result(rankings[row])

    def _reached(self) -> None:
        try:
            self.staging.reached()
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._lost(bug(error))

    async def _run(self, queries: Sequence[Query], staged: StagedRun | None = None) -> Sequence[Ranking]:
        """Run the engine once within the timeout; an answer that does not fit the question is a failure."""
        began = staged.began if staged is not None else None
        started = self._clock() if began is None else began
        timeout = asyncio.timeout(None)
        # In two halves: after a pause of this process the first is over at once, and a healthy run ends in the other.
        half = self._loop.call_later(self._timeout / 2, self._second_half, timeout)
        try:
            async with timeout:
                rankings = await (self._engine.run(queries) if staged is None else staged.result())
        except TimeoutError as error:
            if not timeout.expired():
                raise
            self._engine.terminate()
            raise EngineHungError(
                f"a run of {len(queries)} rows did not end within {self._timeout * 1e3:.0f} ms"
            ) from error
        finally:
            half.cancel()
            self._counts.run(len(queries), self._clock() - started)
        if len(rankings) != len(queries):
            raise EngineError(f"the engine returned {len(rankings)} rankings for {len(queries)} queries")
        return rankings

    def _second_half(self, timeout: asyncio.Timeout) -> None:
        timeout.reschedule(self._loop.time() + self._timeout / 2)

    def _end(self, batch: Batch[Payload], *, failed: bool, run_ended: float | None = None) -> None:
        """Free the slot of a batch that no longer needs the engine; notify tracer and observer.

        Its run has ended at `run_ended`, which is before now if the event loop was busy. Others may have been run
        since, so the time until now does not say what a run takes.
        """
        now = self._clock()
        self._backlog.finish(batch, now if run_ended is None else run_ended, learn=not failed)
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
            # In a separate callback: the loop reports what an observer raises, and no caller is affected.
            self._loop.call_soon(self._observer, ended)
        self._freed(now)

    def _reap(self, task: asyncio.Task[None]) -> None:
        """Read the result of a batch's task: a task that died in silence would strand its callers."""
        batch = self._batches.pop(task)
        outcome: Exception | None = None
        if task.cancelled():
            outcome = self._closed()
            if outcome is None:
                outcome = EngineError("the engine cancelled a run that was still wanted")
                self._lost(outcome)
        elif (error := task.exception()) is not None:
            # Its own callers get an error that is never retried: a row that hangs engines must not travel on.
            outcome = error if isinstance(error, EngineHungError) else bug(error)
            self._lost(outcome)
        for waiter in batch.waiters:
            if not waiter.payload.done():
                waiter.payload.set_exception(outcome or EngineError("a batch ended without an answer"))
        self._ended()


def bug(error: BaseException) -> EngineError:
    """Wrap an unexpected exception for the callers that it leaves without an answer."""
    failure = EngineError(f"the batcher failed: {error!r}")
    failure.__cause__ = error
    return failure
