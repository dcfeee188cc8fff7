"""Random queries, with all inputs that a model takes besides a history: for its checks, its card and its profile."""

from __future__ import annotations

import random

from recommender.domain import Model, Query
from recommender.engine.features import some_features

_START = 1_700_000_000_000
"""Unix milliseconds, in the year 2023."""
_LONGEST_GAP = 86_400_000
"""Milliseconds between two items of a history at most: a day."""


def drawn_query(model: Model, history: tuple[int, ...], k: int, draw: random.Random) -> Query:
    """A query for this history, of a known user if the model takes users; types, ascending times, features likewise."""
    user = 0 if model.users is None else draw.randint(model.users.first, model.users.last)
    types = model.history_types
    times: list[int] = []
    if model.history_times is not None:
        moment = _START
        for _ in history:
            moment += draw.randint(0, _LONGEST_GAP)
            times.append(moment)
    return Query(
        history,
        k,
        user=user,
        history_types=() if types is None else tuple(draw.randint(types.first, types.last) for _ in history),
        history_times=tuple(times),
        features=some_features(model.features, draw),
    )
