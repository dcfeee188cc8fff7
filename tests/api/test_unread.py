"""Items that only histories hold, items that only answers hold, and ids that mean padding."""

from __future__ import annotations

from typing import Any, cast

import pytest

from recommender.api.queries import Limits, Reader
from recommender.batching.batcher import Batcher
from recommender.domain import Model, Query, Ranking
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.answering import Remarks
from tests.support.versions import version_of

NOBODY = cast(Batcher, None)
"""Reading a request needs no batcher."""


def version(**facts: Any) -> Version:
    model = Model("shop", "1", 50, default_k=3, max_k=20, longest_history=16, score_tolerance=0.0, **facts)
    return version_of(NOBODY, model=model, plain_items=0)


def read(version: Version, **request: Any) -> tuple[Query | Ranking, Remarks]:
    return Reader(Limits()).read(api.RecommendRequest(**request)).for_version(version)


def test_a_history_may_hold_items_that_are_never_answered() -> None:
    query, remarks = read(
        version(history_items=60), item_ids=[1, 59, 60], exclude_history=True, excluded_item_ids=[58, 3]
    )

    assert query == Query((1, 59), 3, (1, 3))
    assert remarks.unknown_item_ids == (60,)


def test_candidates_that_only_histories_hold_are_ranked_nowhere() -> None:
    query, remarks = read(version(history_items=60), item_ids=[1], candidate_item_ids=[55, 2])

    assert query == Query((1,), 3, (), (2,))
    assert remarks.unknown_item_ids == ()


def test_an_item_that_the_model_cannot_read_is_left_out_of_the_history_and_excluded_all_the_same() -> None:
    query, remarks = read(version(history_items=40), item_ids=[1, 45], exclude_history=True)

    assert query == Query((1,), 3, (1, 45))
    assert remarks.unknown_item_ids == (45,)


@pytest.mark.parametrize("field", ["item_ids", "excluded_item_ids", "candidate_item_ids"])
def test_an_id_that_means_padding_is_no_item(field: str) -> None:
    _, remarks = read(version(padding_id=7), **({"item_ids": [1], field: [7, 8]}))

    assert remarks.unknown_item_ids == (7,)
