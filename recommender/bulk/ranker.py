"""Run batches on the engine's sessions, in the caller's thread; a faulty row fails alone."""

from __future__ import annotations

from collections.abc import Sequence

from recommender.batching.faults import FaultyRowsError
from recommender.batching.halving import PROBE
from recommender.bulk.answers import Answers
from recommender.bulk.batches import PlainBatch, QueryBatch
from recommender.bulk.errors import BulkError
from recommender.domain import Query, Ranking
from recommender.engine.engine import OnnxEngine
from recommender.errors import EngineError, InvalidRequestError, RecommenderError


class Ranker:
    """Ranks batches of one engine; several threads may at once.

    Raises BulkError if the engine can no longer answer even a row that it has answered before.
    """

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    def rank(self, batch: PlainBatch | QueryBatch, answers: Answers) -> None:
        """Run a batch, and put what its rows got into `answers`."""
        if isinstance(batch, QueryBatch):
            answers.put(batch.places, self._outcomes(batch.queries))
            return
        try:
            ids, scores = self._engine.run_feed(batch.feed, batch.k)
        except Exception:  # noqa: BLE001 (after any failure the rows are retried separately)
            answers.put(batch.places.tolist(), self._outcomes(batch.queries()))
            return
        if ids.shape == scores.shape and len(ids) == len(batch.places):
            answers.put_outputs(batch, ids, scores)
        else:
            answers.put(batch.places.tolist(), self._outcomes(batch.queries()))

    def _outcomes(self, queries: Sequence[Query]) -> Sequence[Ranking | RecommenderError]:
        """Each query's ranking or error. A batch that fails is halved until only the faulty rows fail."""
        try:
            return self._engine.rank(queries)
        except FaultyRowsError as error:
            return error.outcomes
        except InvalidRequestError as error:
            if len(queries) == 1:
                return [error]
        except Exception as error:  # noqa: BLE001 (any exception of an engine is an engine failure)
            self._probe(error)
            if len(queries) == 1:
                return [error if isinstance(error, EngineError) else EngineError(f"the engine failed: {error!r}")]
        middle = len(queries) // 2
        return [*self._outcomes(queries[:middle]), *self._outcomes(queries[middle:])]

    def _probe(self, error: Exception) -> None:
        """Raise BulkError if the engine fails on a row that every model can answer."""
        try:
            self._engine.rank([PROBE])
        except FaultyRowsError:
            return  # it ran
        except Exception as again:
            raise BulkError(f"the engine failed, and does not answer any more: {error!r}") from again
