"""Rows that may get items beside the catalogue: exact top-K of both together.

The model ranks its catalogue and gives each row's vector. The other items are a small table, multiplied here. Only
those that score more than the last of k items of the catalogue are considered: their ids are larger, so among equal
scores the catalogue's item comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.domain import Query, Ranking
from recommender.engine.contract import QUERY, Outputs
from recommender.errors import EngineError
from recommender.new_items import Floats, NewItems

Outcome: TypeAlias = Ranking | EngineError
Vectors: TypeAlias = dict[Hashable, Floats]
"""The vectors of rows, by what the model reads of them."""

_MOST = 2.0**124
"""The largest product that a model takes: see `export/head`."""
_SCORES_AT_ONCE = 1 << 20
"""Scores that are computed at a time: 4 MB."""
_PRODUCTS_AT_ONCE = 1 << 18
"""Products that OpenBLAS sums up on the caller's thread; its own threads spin for 20 ms after larger ones."""
_ROWS_AT_ONCE = 16


def read_of(query: Query) -> Hashable:
    """The parts of a query that its vector depends on."""
    return query.history, query.user, query.history_types, query.history_times, query.features


def noting(vectors: Vectors | None, queries: Sequence[Query], run: Callable[..., Outputs], *more: str) -> Outputs:
    """Run for the usual outputs and for `more`, and note the rows' vectors if they are wanted."""
    if vectors is None:
        return run(more=more)
    *outputs, found = run(more=(*more, QUERY))
    vectors.update(zip(map(read_of, queries), found.astype(np.float32, copy=False), strict=True))
    return outputs


def ranked_beside(
    queries: Sequence[Query], outcomes: Sequence[Outcome], vectors: Mapping[Hashable, Floats]
) -> list[Outcome]:
    """The outcomes of these queries with the items beside the catalogue; each query with such items needs a vector."""
    merged = list(outcomes)
    sharing: dict[NewItems, list[int]] = {}
    for place, (query, outcome) in enumerate(zip(queries, outcomes, strict=True)):
        if query.beside is not None and len(query.beside.items) and isinstance(outcome, Ranking):
            sharing.setdefault(query.beside.items, []).append(place)
    for items, places in sharing.items():
        step = max(_SCORES_AT_ONCE // len(items), 1)
        for start in range(0, len(places), step):
            part = places[start : start + step]
            rows = np.stack([vectors[read_of(queries[place])] for place in part])
            rankings = [outcome for place in part if isinstance(outcome := outcomes[place], Ranking)]
            found = _merged([queries[place] for place in part], rankings, rows, items)
            for place, ranking in zip(part, found, strict=True):
                merged[place] = ranking
    return merged


def _merged(queries: Sequence[Query], rankings: Sequence[Ranking], rows: Floats, items: NewItems) -> list[Ranking]:
    """The rankings of rows that share these items, with the best of them."""
    # For a row that is not finite, or whose products are not, no comparison is true.
    sound = np.abs(rows).sum(axis=1, dtype=np.float64) * max(items.largest, 1.0) <= _MOST
    scores = _product(np.where(sound[:, None], rows, np.float32(0)), items.vectors)
    scores += items.biases
    least = np.array(
        [
            ranking.scores[-1] if len(ranking.scores) == query.k else -np.inf
            for query, ranking in zip(queries, rankings, strict=True)
        ]
    )
    better = (scores > least[:, None].astype(np.float32)) & sound[:, None]
    for row, query in enumerate(queries):
        if query.beside is not None and query.beside.allowed is not None:
            better[row] &= query.beside.allowed
    found = list(rankings)
    for row in np.flatnonzero(better.any(axis=1)).tolist():
        places = np.flatnonzero(better[row])
        found[row] = _best(rankings[row], items.ids[places], scores[row, places], queries[row].k)
    return found


def _product(rows: Floats, vectors: Floats) -> Floats:
    """The scores [r, n] of rows [r, d] for vectors [n, d], on this thread alone."""
    if len(rows) == 1:  # OpenBLAS has another bound for the product with one vector
        return _product(np.repeat(rows, 2, axis=0), vectors)[:1]
    scores = np.empty((len(rows), len(vectors)), np.float32)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        step = max(_PRODUCTS_AT_ONCE // part.size, 1)
        for start in range(0, len(vectors), step):
            several = vectors[start : start + step]
            np.matmul(part, several.T, out=scores[first : first + len(part), start : start + len(several)])
    return scores


def _best(ranking: Ranking, ids: npt.NDArray[np.int64], scores: Floats, k: int) -> Ranking:
    """The k best of a ranking and of other items, ascending."""
    if len(scores) > k:
        kept = scores >= np.partition(scores, -k)[-k]
        ids, scores = ids[kept], scores[kept]
    all_ids = np.concatenate([np.array(ranking.item_ids, np.int64), ids])
    all_scores = np.concatenate([np.array(ranking.scores, np.float32), scores])
    order = np.lexsort((all_ids, -all_scores))[:k]
    return Ranking(all_ids[order].tolist(), all_scores[order].tolist())
