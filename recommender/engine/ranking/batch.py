"""One batch on its way through a model's sessions: in as many runs as its rows need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime

from recommender.batching.faults import whole
from recommender.domain import Query, Ranking
from recommender.engine.masked.bounds import BOUNDED, BOUNDS
from recommender.engine.masked.named import outcomes_of
from recommender.engine.masked.ranking import MaskedRanking, Walked, kept_alone
from recommender.engine.masked.ways import Costs
from recommender.engine.ranking.beside import Vectors, noting, ranked_beside, read_of
from recommender.engine.ranking.rules import ranked_by_rules
from recommender.engine.sessions import Sessions
from recommender.errors import EngineError


@dataclass(frozen=True, slots=True)
class Batch:
    """Ranks the rows of one batch, with the `options` of its runs.

    `begun` is called as soon as the first run has its feed. `costs` choose the ways of rows with masks. `general` and
    `padding` are those of `OnnxEngine.run`.
    """

    sessions: Sessions
    options: onnxruntime.RunOptions
    begun: Callable[[], None]
    costs: Costs
    general: bool = False
    padding: int | None = None

    def rank(self, queries: Sequence[Query], vectors: Vectors | None = None) -> list[Ranking]:
        """Rank every query, in order, and note the rows' vectors in `vectors`. Raises what `OnnxEngine.run` raises."""
        contract = self.sessions.contract
        apart = [query.masks or query.beside or query.rules for query in queries]
        if any(apart):
            if any(query.rules for query in queries):
                return whole(
                    ranked_by_rules(queries, lambda each: outcomes_of(partial(self.rank, each)), contract.items)
                )
            if any(query.beside for query in queries):
                return self._rank_beside(queries)
            masked = MaskedRanking(
                contract,
                self.sessions.model,
                lambda unmasked: outcomes_of(partial(self.rank, unmasked, vectors)),
                partial(self.sessions.run, options=self.options, general=self.general),
                self.padding,
                walk=partial(self._walk, vectors),
                block=self.sessions.block,
                costs=self.costs,
            )
            return whole(masked.outcomes(queries))
        runs = contract.runs(queries)
        if len(runs) == 1:
            return self._rank_in_one_run(queries, vectors)
        outcomes: dict[int, Ranking | EngineError] = {}
        for places in runs:
            sharing = [queries[place] for place in places]
            outcomes.update(zip(places, outcomes_of(partial(self._rank_in_one_run, sharing, vectors)), strict=True))
        return whole([outcomes[place] for place in range(len(queries))])

    def rank_one_by_one(self, queries: Sequence[Query]) -> list[Ranking]:
        """Rank every query, in order, with a model of the older form. Raises what `OnnxEngine.run` raises."""
        contract, most = self.sessions.contract, self.sessions.model.max_k
        self.begun()
        outcomes: list[Ranking | EngineError] = []
        for query in queries:
            wanted = query._replace(k=most) if query.masks else query
            outputs = self.sessions.run(contract.pack_alone(query), query.k, self.options)
            (outcome,) = outcomes_of(partial(contract.unpack_alone, outputs, [wanted]))
            outcomes.append(
                kept_alone(outcome, query, most) if query.masks and isinstance(outcome, Ranking) else outcome
            )
        return whole(outcomes)

    def _rank_in_one_run(self, queries: Sequence[Query], vectors: Vectors | None) -> list[Ranking]:
        contract = self.sessions.contract
        feed = contract.pack(queries, self.padding)
        self.begun()
        run = partial(self.sessions.run, feed, max([query.k for query in queries]), self.options, general=self.general)
        return contract.unpack(noting(vectors, queries, run), queries)

    def _walk(self, vectors: Vectors | None, queries: Sequence[Query], bounded: Sequence[Query]) -> Walked:
        """Rank for `queries` in one run that gives the bounds of blocks for the rows in `bounded`."""
        contract = self.sessions.contract
        rows, k = [*queries, *bounded], max([query.k for query in queries], default=1)
        feed = contract.pack(rows, self.padding)
        feed["k"], feed[BOUNDED] = np.array([min(k, contract.items)]), np.arange(len(queries), len(rows))
        self.begun()
        run = partial(self.sessions.run, feed, k, self.options, general=self.general)
        ids, scores, bounds = noting(vectors, rows, run, BOUNDS)
        own = [ids[: len(queries)], scores[: len(queries)]]
        outcomes = outcomes_of(partial(contract.unpack, own, queries)) if queries else ()
        return Walked(outcomes, bounds.astype(np.float32, copy=False))

    def _rank_beside(self, queries: Sequence[Query]) -> list[Ranking]:
        """Rank the catalogue, and the items beside it by the vectors of the runs."""
        vectors: Vectors = {}
        alone = [query._replace(beside=None) for query in queries]
        outcomes = outcomes_of(partial(self.rank, alone, vectors))
        # Rows of which nothing is ranked, or few items by their names, have no vector yet.
        left = [query for query in alone if read_of(query) not in vectors]
        if left:
            bare = [query._replace(k=1, excluded=(), candidates=None, masks=()) for query in left]
            found = self.sessions.encode(self.sessions.contract.pack(bare, self.padding), self.options)
            vectors.update(zip(map(read_of, left), found, strict=True))
        return whole(ranked_beside(queries, outcomes, vectors))
