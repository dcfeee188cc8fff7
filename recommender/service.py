"""The RPCs as plain async functions: wire message → query → batcher → wire message. Knows no transport."""

from __future__ import annotations

import math

from recommender.batcher import Batcher
from recommender.domain import Model, Query
from recommender.errors import InvalidRequestError, Violation
from recommender.recommend_api.v1.recommend_api_pb2 import RecommendRequest, RecommendResponse


class RecommenderService:
    """Answers requests with one model through one batcher.

    `limit` is how many recommendations a caller gets who asks for no number; `max_history` is the
    longest history, in items, that is read at all.
    """

    def __init__(self, batcher: Batcher, model: Model, *, limit: int, max_history: int) -> None:
        self._batcher = batcher
        self._model = model
        self._limit = limit
        self._max_history = max_history

    async def recommend(self, request: RecommendRequest, deadline: float = math.inf) -> RecommendResponse:
        """Rank the catalogue for one history; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the request is at fault, and what `Batcher.submit` raises.
        """
        query = self._query(request)
        ranking = await self._batcher.submit(query, deadline=deadline)
        return RecommendResponse(item_ids=ranking.item_ids, scores=ranking.scores, model_version=self._model.label)

    def _query(self, request: RecommendRequest) -> Query:
        model = self._model
        k = request.limit or self._limit
        if not 0 < k <= model.max_k:
            bounds = f"0 to {model.max_k}, the most that model {model.label} returns; 0 stands for {self._limit}"
            raise InvalidRequestError(Violation("limit", f"{request.limit} is not in the range {bounds}"))
        history = tuple(request.item_ids)
        if len(history) > self._max_history:
            raise InvalidRequestError(
                Violation(
                    "item_ids",
                    f"{len(history)} items are more than the {self._max_history} that a history may have: "
                    "send the most recent ones",
                )
            )
        if not history:
            raise InvalidRequestError(Violation("item_ids", "the history is empty: send at least one item id"))
        if min(history) < 0:
            raise InvalidRequestError(*_negative_ids(history))
        items = model.items
        if items is not None and max(history) >= items:
            history = tuple(item for item in history if item < items)
            if not history:
                raise InvalidRequestError(
                    Violation(
                        "item_ids",
                        f"no item of the history is in the catalogue: its ids are 0 to {items - 1}",
                    )
                )
        longest = model.longest_history
        if longest is not None and len(history) > longest:
            history = history[-longest:]
        return Query(history, k)


_MOST_VIOLATIONS = 10


def _negative_ids(history: tuple[int, ...]) -> list[Violation]:
    """One violation for each negative id, the first few of them: the caller's status stays small."""
    found = [(index, item) for index, item in enumerate(history) if item < 0]
    return [
        Violation(f"item_ids[{index}]", f"{item} is negative: item ids count from 0")
        for index, item in found[:_MOST_VIOLATIONS]
    ]
