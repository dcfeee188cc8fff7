"""Features: inputs of a model that its card declares, and how the values of queries become their arrays."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from recommender.domain import Feature, FeatureKind, FeatureValue, Number, Query

Array: TypeAlias = npt.NDArray[Any]

_TYPES: Mapping[FeatureKind, tuple[str, type[np.generic]]] = {
    "int64": ("tensor(int64)", np.int64),
    "string": ("tensor(int64)", np.int64),
    "float": ("tensor(float)", np.float32),
    "bool": ("tensor(bool)", np.bool_),
}
"""What ONNX Runtime calls the input of each kind, and its elements."""


def type_of(feature: Feature) -> str:
    """The element type of a feature's input, as ONNX Runtime spells it."""
    return _TYPES[feature.kind][0]


def dtype_of(feature: Feature) -> type[np.generic]:
    """The element type of a feature's array."""
    return _TYPES[feature.kind][1]


def faults_of(
    features: Sequence[Feature], inputs: Mapping[str, tuple[str, Sequence[int | str | None]]]
) -> Iterator[str]:
    """Mismatches between declared features and a model's other inputs, given by type and shape."""
    declared = {feature.name: feature for feature in features}
    for name, (found, shape) in inputs.items():
        feature = declared.get(name)
        if feature is None:
            yield f"input {name} is unknown: the contract does not have it, and no card declares it as a feature"
            continue
        rank = 1 if feature.width is None else 2
        width = shape[1] if len(shape) == rank == 2 else None  # noqa: PLR2004 (rows and a list of values)
        if found != type_of(feature) or len(shape) != rank:
            yield (
                f"input {name} is {found} of rank {len(shape)}, and the card declares a feature that is "
                f"{type_of(feature)} of rank {rank}"
            )
        elif isinstance(width, int) and width != feature.width:
            yield f"input {name} has {width} values a row, and the card declares {feature.width}"
    for name in declared.keys() - inputs.keys():
        yield f"the card declares a feature {name}, which the model does not have"


def pack_features(features: Sequence[Feature], queries: Sequence[Query]) -> dict[str, Array]:
    """The arrays of the features, [batch] or [batch, width], with fillers for queries that have none."""
    packed = {}
    some = any(query.features for query in queries)
    for place, feature in enumerate(features):
        filler, dtype, rows = feature.filler, dtype_of(feature), len(queries)
        if not some:
            packed[feature.name] = filled(feature, rows)
            continue
        values: list[FeatureValue] = [query.features[place] if query.features else filler for query in queries]
        if feature.width is None:
            packed[feature.name] = np.array(values, dtype)
        else:
            flat: Iterator[Number] = chain.from_iterable(values)  # type: ignore[arg-type]  # such a value is a tuple
            packed[feature.name] = np.fromiter(flat, dtype, rows * feature.width).reshape(rows, feature.width)
    return packed


def filled(feature: Feature, rows: int) -> Array:
    """A feature's array of so many rows, with its filler in each."""
    array = np.empty(rows if feature.width is None else (rows, feature.width), dtype_of(feature))
    array[:] = feature.filler
    return array


def some_features(features: Sequence[Feature], drawn: random.Random) -> tuple[FeatureValue, ...]:
    """Random values that a request may hold, for trials; whole numbers without an upper bound stay at their filler."""
    return tuple(
        _some(feature, drawn) if feature.width is None else tuple(_some(feature, drawn) for _ in range(feature.width))
        for feature in features
    )


def extreme_features(features: Sequence[Feature]) -> list[tuple[FeatureValue, ...]]:
    """The least and the largest values that a request may hold, for trials; fillers where there is no bound."""
    if not features:
        return []
    return [
        tuple(_bound(feature, feature.low) for feature in features),
        tuple(_bound(feature, feature.high) for feature in features),
    ]


def _bound(feature: Feature, bound: Number | None) -> FeatureValue:
    if bound is None:
        return feature.filler
    return bound if feature.width is None else (bound,) * feature.width


def _some(feature: Feature, drawn: random.Random) -> Number:
    if feature.kind == "bool":
        return drawn.random() < 0.5  # noqa: PLR2004 (a coin)
    if feature.kind == "float":
        low = -1.0 if feature.low is None else float(feature.low)
        return drawn.uniform(low, low + 2.0 if feature.high is None else float(feature.high))
    low_number = 0 if feature.low is None else int(feature.low)
    return low_number if feature.high is None else drawn.randint(low_number, int(feature.high))
