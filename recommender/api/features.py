"""The features of a request: held to the rules of the proto where that is quick, and to what a version takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from recommender.domain import Feature, FeatureValue, Number
from recommender.errors import InputsError, Violation
from recommender.models.features import bounds
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_NAMED = 10
"""Violations and names that a message has at most: a caller's status stays small."""
_FEW = 32
"""Features that are looked through sooner here than by the validator."""
_LONGEST_NAME, _LONGEST_STRING, _LONGEST_LIST = 32, 256, 4096
"""Characters, and values of a list, that are within the proto's limits however they are encoded."""

_ONE = {int: "int64", float: "double", str: "string", bool: "bool"}
"""The type of one value."""
_LISTS = {"int64_list": "int64", "double_list": "double", "string_list": "string", "bool_list": "bool"}
"""The type of a list's values by its field."""
_TAKEN = {"int64": ("int64",), "float": ("double", "int64"), "string": ("string",), "bool": ("bool",)}
"""The types of values that each kind of feature takes."""
_CALLED = {"int64": "int64", "float": "float32", "string": "string", "bool": "bool"}

Given: TypeAlias = Number | str | api.FeatureValue
"""A feature as a request brings it: one value as it is, and a list in its message."""


def feature_field(name: str) -> str:
    """A feature, as messages name it among the fields of a request."""
    return f"features[{name}]"


def given_features(features: Mapping[str, api.FeatureValue]) -> dict[str, Given]:
    """The features of a request that keeps the rules of the proto."""
    return {name: _given(features[name]) for name in features}


def plain_features(features: Mapping[str, api.FeatureValue]) -> dict[str, Given] | None:
    """The features of a request; None if they may break a rule of the proto, so that the validator has to look."""
    if len(features) > _FEW:
        return None
    given: dict[str, Given] = {}
    for name in features:
        value = features[name]  # takes half the time of `items()`
        one: Given = value
        match value.WhichOneof("value"):
            case "double_value":
                one = value.double_value
                sound = math.isfinite(one)
            case "string_value":
                one = value.string_value
                sound = len(one) <= _LONGEST_STRING
            case "int64_value":
                one, sound = value.int64_value, True
            case "bool_value":
                one, sound = value.bool_value, True
            case "int64_list":
                sound = len(value.int64_list.values) <= _LONGEST_LIST
            case "double_list":
                numbers = value.double_list.values
                sound = len(numbers) <= _LONGEST_LIST and all(map(math.isfinite, numbers))
            case _:
                sound = False
        if not sound or not 0 < len(name) <= _LONGEST_NAME:
            return None
        given[name] = one
    return given


def _given(value: api.FeatureValue) -> Given:
    """A scalar value, else its message."""
    field = value.WhichOneof("value")
    if field is None or field in _LISTS:
        return value
    one: Number | str = getattr(value, field)
    return one


def untaken_features(version: Version, names: Collection[str]) -> dict[str, str]:
    """Those of these features that a version does not take, as fields, each with what it takes instead."""
    if version.feature_names.issuperset(names):
        return {}
    taken = [feature.name for feature in version.model.features]
    untaken = [name for name in names if name not in taken]
    takes = "no features" if not taken else f"no such feature, but {_some(taken)}"
    return {feature_field(name): takes for name in untaken}


def features_for(
    version: Version, given: Mapping[str, Given] | None, *, leniently: bool = False
) -> tuple[tuple[FeatureValue, ...], tuple[str, ...]]:
    """Convert a request's features to the model's inputs, in the model's order; also returns the ignored fields.

    There are no values if all are the defaults. Features that the version does not take are passed over. Raises
    InputsError if one is missing and has no default, or has a value that it cannot have. Read `leniently`, the latter
    is ignored if there is a default.
    """
    if not version.features or not (given or version.needs_features):
        return (), ()
    if given is not None and (plain := _read_plainly(version, given)) is not None:
        return plain, ()
    values: list[FeatureValue] = []
    wrong: list[Violation] = []
    untaken: list[str] = []
    for feature in version.model.features:
        value = given.get(feature.name) if given else None
        fault: str | None = None
        if value is not None:
            read = _read(feature, value, version)
            if not isinstance(read, str):
                values.append(read)
                continue
            untaken.append(feature_field(feature.name))
            if leniently and feature.default is not None:
                values.append(feature.default)
            else:
                fault = read
        elif feature.default is not None:
            values.append(feature.default)
        else:
            fault = f"needs {_described(feature)} here, which has no default"
        if fault is not None and len(wrong) < _NAMED:
            wrong.append(Violation(feature_field(feature.name), f"model {version.model.label} {fault}"))
    if wrong:
        raise InputsError(*wrong, untaken=untaken)
    return tuple(values), tuple(untaken)


def _read_plainly(version: Version, given: Mapping[str, Given]) -> tuple[FeatureValue, ...] | None:
    """Values that need no conversion, with the model's defaults; None if one needs conversion."""
    values: list[FeatureValue] = []
    for name, kind, low, high, tokens, default in version.features:
        value = given.get(name)
        if value is None:
            if default is None:
                return None
            values.append(default)
        elif type(value) is not kind:
            return None
        elif isinstance(value, str):
            if tokens is None:
                return None
            values.append(tokens.number(value))
        elif not isinstance(value, api.FeatureValue) and low <= value <= high:
            values.append(value)
        else:
            return None
    return tuple(values)


def _read(feature: Feature, value: Given, version: Version) -> FeatureValue | str:
    """Convert a value to the model's input; returns the reason as text if it cannot be converted."""
    given: Sequence[Number | str]
    is_list = isinstance(value, api.FeatureValue)
    if isinstance(value, api.FeatureValue):
        field = value.WhichOneof("value")
        if field is None:
            return f"takes {_described(feature)} here, not nothing"
        kind, given = _LISTS[field], getattr(value, field).values
    else:
        kind, given = _ONE[type(value)], (value,)
    if kind not in _TAKEN[feature.kind] or is_list is (feature.width is None):
        return f"takes {_described(feature)} here, not {'a list of' if is_list else 'one'} {kind}"
    if is_list and len(given) != feature.width:
        return f"takes {_described(feature)} here, not {len(given)}"
    numbers: list[Number]
    if feature.kind == "string":
        numbers = [*version.tokens[feature.name].numbers(map(str, given))]
    elif feature.kind == "float":
        numbers = [*map(float, given)]
    else:
        numbers = [*given]  # type: ignore[list-item] # strings have another branch
    fault = _beyond(feature, numbers)
    if fault is not None:
        return fault
    return tuple(numbers) if is_list else numbers[0]


def _beyond(feature: Feature, numbers: Sequence[Number]) -> str | None:
    """Why the feature may not have these numbers; None if it may."""
    low, high = bounds(feature)
    for number in numbers:
        if number < low:
            return f"takes no number below {low:g} here, and {number:g} is"
        if number > high:
            return f"takes no number above {high:g} here, and {number:g} is"
    return None


def _described(feature: Feature) -> str:
    kind = _CALLED[feature.kind]
    return f"one {kind}" if feature.width is None else f"a list of {feature.width} {kind}"


def _some(names: Sequence[str]) -> str:
    told = ", ".join(names[:_NAMED])
    return told if len(names) <= _NAMED else f"{told} and {len(names) - _NAMED} more"
