"""Requests, as callers in Python write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict, Unpack

from recommender.api.values import Feature, feature_value
from recommender.recommend_api.v1 import recommend_api_pb2 as api

Boost = api.Boost
MaxPer = api.MaxPer
Request: TypeAlias = api.RecommendRequest
"""One request of a batch call or a stream."""


class Fields(TypedDict, total=False):
    """Fields of a request, besides its history, that are passed to the message as they are."""

    limit: int
    item_keys: Sequence[str]
    excluded_item_ids: Sequence[int]
    excluded_item_keys: Sequence[str]
    exclude_history: bool
    candidate_item_ids: Sequence[int]
    candidate_item_keys: Sequence[str]
    min_score: float
    model: str
    routing_key: str
    user_key: str
    user_id: int
    history_type_keys: Sequence[str]
    history_type_ids: Sequence[int]
    history_times: Sequence[int]
    filter: str
    boosts: Sequence[api.Boost]
    max_per: Sequence[api.MaxPer]


class Options(Fields, total=False):
    """Fields of a request besides its history, as the proto describes them."""

    features: Mapping[str, Feature]
    filter_parameters: Mapping[str, Feature]


def request_of(
    item_ids: Sequence[int],
    *,
    features: Mapping[str, Feature] | None = None,
    filter_parameters: Mapping[str, Feature] | None = None,
    **fields: Unpack[Fields],
) -> Request:
    """The message for a history, oldest item first, and what else is asked.

    Raises TypeError or ValueError if the message cannot hold it.
    """
    request = api.RecommendRequest(item_ids=item_ids, **fields)
    for name, value in (features or {}).items():
        request.features[name].CopyFrom(feature_value(value))
    for name, value in (filter_parameters or {}).items():
        request.filter_parameters[name].CopyFrom(feature_value(value))
    return request
