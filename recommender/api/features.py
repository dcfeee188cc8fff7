"""The features of a request: held to the rules of the proto where that is quick, and to what a version takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from recommender.domain import LARGEST_FLOAT, Feature, FeatureValue, Number
from recommender.errors import InputsError, Violation
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_NAMED = 10
"""Violations and names that a message has at most: a caller's status stays small."""
_FEW = 32
"""Features that are looked through sooner here than by the validator."""
_LONGEST_NAME, _LONGEST_STRING, _LONGEST_LIST = 32, 256, 4096
"""Characters, and values of a list, that are within the proto's limits however they are encoded."""

_TYPES = {
    "int64_value": ("int64", False),
    "double_value": ("double", False),
    "string_value": ("string", False),
    "bool_value": ("bool", False),
    "int64_list": ("int64", True),
    "double_list": ("double", True),
    "string_list": ("string", True),
    "bool_list": ("bool", True),
}
"""The type of a value by its field, and whether it is a list."""
_TAKEN = {"int64": ("int64",), "float": ("double", "int64"), "string": ("string",), "bool": ("bool",)}
"""The types of values that each kind of feature takes."""
_PLAINLY = {"int64": "int64_value", "float": "double_value", "string": "string_value", "bool": "bool_value"}
"""The field of one value of each kind that needs no conversion."""
_CALLED = {"int64": "int64", "float": "float32", "string": "string", "bool": "bool"}


def feature_field(name: str) -> str:
    """A feature, as messages name it among the fields of a request."""
    return f"features[{name}]"


def surely_keep_rules(features: Mapping[str, api.FeatureValue]) -> bool:
    """Whether features keep the rules of the proto; False if the validator has to look."""
    if len(features) > _FEW:
        return False
    for name in features:
        if not 0 < len(name) <= _LONGEST_NAME:
            return False
        value = features[name]  # takes half the time of `items()`
        match value.WhichOneof("value"):
            case "int64_value" | "bool_value":
                sound = True
            case "double_value":
                sound = math.isfinite(value.double_value)
            case "string_value":
                sound = len(value.string_value) <= _LONGEST_STRING
            case "int64_list":
                sound = len(value.int64_list.values) <= _LONGEST_LIST
            case "double_list":
                numbers = value.double_list.values
                sound = len(numbers) <= _LONGEST_LIST and all(map(math.isfinite, numbers))
            case _:
                sound = False
        if not sound:
            return False
    return True


def untaken_features(version: Version, names: Iterable[str]) -> dict[str, str]:
    """Those of these features that a version does not take, as fields, each with what it takes instead."""
    if version.feature_names.issuperset(names):
        return {}
    taken = [feature.name for feature in version.model.features]
    untaken = [name for name in names if name not in taken]
    takes = "no features" if not taken else f"no such feature, but {_some(taken)}"
    return {feature_field(name): takes for name in untaken}


def features_for(
    version: Version, given: Mapping[str, api.FeatureValue] | None, *, leniently: bool = False
) -> tuple[tuple[FeatureValue, ...], tuple[str, ...]]:
    """What a version's model reads for the features of a request, in the model's order, and the fields that it ignores.

    There are no values if all are the defaults. Features that the version does not take are passed over. Raises
    InputsError if one is missing and has no default, or has a value that it cannot have. Read `leniently`, the latter
    is ignored if there is a default.
    """
    features = version.model.features
    if not features or not (given or version.needs_features):
        return (), ()
    values: list[FeatureValue] = []
    wrong: list[Violation] = []
    untaken: list[str] = []
    for feature in features:
        value = given.get(feature.name) if given else None
        fault: str | None = None
        if value is not None:
            read: FeatureValue | str | None = _read_plainly(feature, value, version)
            if read is None:
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


def _read_plainly(feature: Feature, value: api.FeatureValue, version: Version) -> FeatureValue | None:
    """What the model reads for one value that needs no conversion; None for any other, or one that it cannot have."""
    field = _PLAINLY[feature.kind]
    if feature.width is not None or value.WhichOneof("value") != field:
        return None
    one = getattr(value, field)
    if feature.kind == "string":
        return version.tokens[feature.name].number(one)
    within = feature.low is not None and feature.high is not None and feature.low <= one <= feature.high
    return one if within else None


def _read(feature: Feature, value: api.FeatureValue, version: Version) -> FeatureValue | str:
    """What the model reads for a value, or why it cannot have it."""
    field = value.WhichOneof("value")
    if field is None:
        return f"takes {_described(feature)} here, not nothing"
    kind, is_list = _TYPES[field]
    content = getattr(value, field)
    if kind not in _TAKEN[feature.kind] or is_list is (feature.width is None):
        return f"takes {_described(feature)} here, not {'a list of' if is_list else 'one'} {kind}"
    given: Sequence[Number | str] = content.values if is_list else (content,)
    if is_list and len(given) != feature.width:
        return f"takes {_described(feature)} here, not {len(given)}"
    numbers: list[Number]
    if feature.kind == "string":
        numbers = [*version.tokens[feature.name].numbers(map(str, given))]
    elif feature.kind == "float":
        numbers = [*map(float, given)]
    else:
        numbers = [*given]  # type: ignore[list-item]  # strings are none of this kind
    fault = _beyond(feature, numbers)
    if fault is not None:
        return fault
    return tuple(numbers) if is_list else numbers[0]


def _beyond(feature: Feature, numbers: Sequence[Number]) -> str | None:
    """Why these numbers are none that the feature may have; None if they are."""
    low, high = feature.low, feature.high
    if feature.kind == "float":
        low = -LARGEST_FLOAT if low is None else low
        high = LARGEST_FLOAT if high is None else high
    for number in numbers:
        if low is not None and number < low:
            return f"takes no number below {low:g} here, and {number:g} is"
        if high is not None and number > high:
            return f"takes no number above {high:g} here, and {number:g} is"
    return None


def _described(feature: Feature) -> str:
    kind = _CALLED[feature.kind]
    return f"one {kind}" if feature.width is None else f"a list of {feature.width} {kind}"


def _some(names: Sequence[str]) -> str:
    told = ", ".join(names[:_NAMED])
    return told if len(names) <= _NAMED else f"{told} and {len(names) - _NAMED} more"
