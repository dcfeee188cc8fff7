"""Values of features as Python and numpy have them, and as messages do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from recommender.recommend_api.v1 import recommend_api_pb2 as api

Feature: TypeAlias = int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
"""The value of a feature, or a list of values of one type; a bool is its own type, neither int nor float."""


def feature_value(value: Feature) -> api.FeatureValue:
    """The message for the value of a feature: numpy's numbers are taken, and whole numbers among floats.

    Raises TypeError if it is of no type that features have, or of several.
    """
    given: Any = value  # numpy's arrays and numbers have no types to tell apart here
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
