"""Requests, as callers in Python write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, Unpack

from recommender.recommend_api.v1 import recommend_api_pb2 as api

Request: TypeAlias = api.RecommendRequest
"""One request of a batch call or a stream."""

Feature: TypeAlias = int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
"""The value of a feature, or a list of values of one type; a bool is its own type, neither int nor float."""


class Fields(TypedDict, total=False):
    """What a request may hold beside its history as the message does."""

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


class Options(Fields, total=False):
    """What a request may hold beside its history, as the proto describes it."""

    features: Mapping[str, Feature]


def request_of(
    item_ids: Sequence[int], *, features: Mapping[str, Feature] | None = None, **fields: Unpack[Fields]
) -> Request:
    """The message for a history, oldest item first, and what else is asked.

    Raises TypeError or ValueError if the message cannot hold it.
    """
    request = api.RecommendRequest(item_ids=item_ids, **fields)
    for name, value in (features or {}).items():
        request.features[name].CopyFrom(feature_value(value))
    return request


def feature_value(value: Feature) -> api.FeatureValue:
    """The message for the value of a feature: numpy's numbers are taken, and whole numbers among floats.

    Raises TypeError if it is of no type that features have, or of several.
    """
    given: Any = value  # numpy's arrays and numbers are no types that are told apart here
    if hasattr(given, "tolist"):
        given = given.tolist()
    is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    values = [each.item() if hasattr(each, "item") else each for each in (given if is_list else [given])]
    kinds = {type(each) for each in values}
    if kinds == {str}:
        return api.FeatureValue(string_list={"values": values}) if is_list else api.FeatureValue(string_value=values[0])
    if kinds == {bool}:
        return api.FeatureValue(bool_list={"values": values}) if is_list else api.FeatureValue(bool_value=values[0])
    if kinds <= {int}:
        return api.FeatureValue(int64_list={"values": values}) if is_list else api.FeatureValue(int64_value=values[0])
    if kinds <= {int, float}:
        return api.FeatureValue(double_list={"values": values}) if is_list else api.FeatureValue(double_value=values[0])
    names = " and ".join(sorted(kind.__name__ for kind in kinds))
    raise TypeError(f"a feature is a whole number, a float, a string, a bool, or a list of one of these, not {names}")
