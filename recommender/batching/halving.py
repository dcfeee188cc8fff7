"""Halve a failed batch and try it again, until the guilty rows stand alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from recommender.batching.batches import Batch, Waiter
from recommender.batching.faults import FaultyRowsError
from recommender.batching.many import Payload, answer
from recommender.batching.statistics import Counts
from recommender.domain import Query, Ranking
from recommender.errors import DeadlineError, EngineError, EngineHungError, InvalidRequestError

PROBE = Query((0,), 1)
"""A row that every model can answer: item 0 exists in every catalogue."""


@dataclass(slots=True)
class _Row:
    """One query of a batch with all its callers."""

    query: Query
    waiters: list[Waiter[Payload]] = field(default_factory=list)

    def wanted(self, now: float) -> bool:
        return any(not waiter.payload.done() and waiter.deadline > now for waiter in self.waiters)

    def settle(self, outcome: Ranking | Exception) -> None:
        for waiter in self.waiters:
            answer(waiter.payload, outcome)


@dataclass(frozen=True, slots=True)
class Halving:
    """Tries failed batches again by `run`, which ranks for queries as an engine does."""

    run: Callable[[Sequence[Query]], Awaitable[Sequence[Ranking]]]
    clock: Callable[[], float]
    counts: Counts

    async def isolate(self, batch: Batch[Payload], error: Exception) -> None:
        """Answer all callers of a batch that failed with `error`, and give each faulty row its own error.

        Halving takes at most ⌈log2 rows⌉ levels. If both halves of a batch fail, a row known to be good is tried. If it
        fails too, the engine is at fault and all other rows fail at once. Raises EngineHungError if a run hangs; the
        catcher must then answer the remaining callers.
        """
        rows = [_Row(query) for query in batch.queries]
        for waiter, row in zip(batch.waiters, batch.rows, strict=True):
            rows[row].waiters.append(waiter)
        parts: list[tuple[list[_Row], Exception]] = [(rows, error)]
        while parts:
            part, error = parts.pop()
            if len(part) == 1:
                part[0].settle(_for_caller(error))
                continue
            self.counts.split += 1
            middle = len(part) // 2
            halves = (part[:middle], part[middle:])
            failed = [(half, why) for half in halves if (why := await self._try(half)) is not None]
            if len(failed) == len(halves) and await self._fails(PROBE):
                for given_up, _ in (*parts, (part, error)):
                    for each in given_up:
                        each.settle(_for_caller(error))
                return
            parts.extend(failed)

    async def _try(self, rows: list[_Row]) -> Exception | None:
        """Run the rows that are still wanted and answer them; returns the error if that failed."""
        now = self.clock()
        for row in rows:
            if not row.wanted(now):
                row.settle(DeadlineError("the deadline passed while a failed batch was tried again"))
        wanted = [row for row in rows if row.wanted(now)]
        if not wanted:
            return None
        try:
            outcomes: Sequence[Ranking | EngineError] = await self.run([row.query for row in wanted])
        except EngineHungError:
            raise
        except FaultyRowsError as error:
            outcomes = error.outcomes
        except Exception as error:  # noqa: BLE001 (any exception of an engine is an engine failure)
            rows[:] = wanted
            return error
        for row, outcome in zip(wanted, outcomes, strict=True):
            row.settle(outcome)
        return None

    async def _fails(self, query: Query) -> bool:
        try:
            await self.run([query])
        except EngineHungError:
            raise
        except FaultyRowsError:
            return False  # the engine ran
        except Exception:  # noqa: BLE001 (any exception of an engine is an engine failure)
            return True
        return False


def _for_caller(error: Exception) -> Exception:
    """The error for the callers of a row: their own fault as it is, everything else as the engine's."""
    if isinstance(error, InvalidRequestError | EngineError):
        return error
    failure = EngineError(f"the engine failed: {error!r}")
    failure.__cause__ = error
    return failure
