"""Requests of every kind, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from recommender.recommend_api.v1 import recommend_api_pb2 as api


def requests(items: int, users: int = 0) -> st.SearchStrategy[api.RecommendRequest]:
    """Any request about a catalogue of that size, with unknown items and duplicates; with users, if there are any."""
    known = st.integers(0, items - 1)
    anything = st.one_of(known, known, known, st.integers(items, 2**31 - 1))
    return st.builds(
        api.RecommendRequest,
        item_ids=st.lists(anything, max_size=20),
        limit=st.one_of(st.just(0), st.integers(1, min(items, 1000))),
        excluded_item_ids=st.one_of(st.just([]), st.lists(anything, max_size=30), st.just(list(range(items)))),
        exclude_history=st.booleans(),
        candidate_item_ids=st.one_of(st.just([]), st.just([]), st.lists(anything, max_size=40)),
        user_id=st.one_of(st.none(), st.integers(0, users), st.integers(users + 1, 2**63 - 1)) if users else st.none(),
        min_score=st.one_of(st.none(), st.floats(0, 8, width=32)),
    )
