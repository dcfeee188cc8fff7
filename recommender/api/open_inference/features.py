"""Features as tensors have them: a value, or a list of values, for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from recommender.api.features import Given
from recommender.api.open_inference.lists import wrong_shape
from recommender.api.open_inference.tensors import Tensor, Texts, refused
from recommender.domain import Feature, Number
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_LONGEST_LIST: Final = 4096
"""Values of a list, as the rules of RecommendRequest have it."""


def declared_features(versions: Iterable[Version]) -> dict[str, Feature]:
    """The features that these versions take, by name; of two of one name the first."""
    found: dict[str, Feature] = {}
    for version in versions:
        for feature in version.model.features:
            found.setdefault(feature.name, feature)
    return found


class FeatureTensors:
    """The features of each row. Raises InvalidRequestError if a tensor has another shape than they."""

    def __init__(self, tensors: Mapping[str, Tensor], declared: Mapping[str, Feature], rows: int) -> None:
        self._tensors = [tensors[name] for name in declared if name in tensors]
        self._lists = {name for name, feature in declared.items() if feature.width is not None}
        for tensor in self._tensors:
            if tensor.name in self._lists:
                if len(tensor.shape) == 1 or tensor.shape[0] != rows or tensor.shape[1] > _LONGEST_LIST:
                    raise wrong_shape(tensor, f"[{rows}, values]")
            elif tensor.shape not in {(rows,), (rows, 1)}:
                raise wrong_shape(tensor, f"[{rows}] or [{rows}, 1]")
            if isinstance(tensor.elements, np.ndarray) and not np.isfinite(tensor.elements).all():
                raise refused(tensor.name, "it has a NaN or an infinity")

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def take(self, row: int) -> dict[str, Given]:
        """Take the features of a row, by name; rows are taken once, in order. Raises InvalidRequestError."""
        return {tensor.name: self._value(tensor, row) for tensor in self._tensors}

    def _value(self, tensor: Tensor, row: int) -> Given:
        is_list = tensor.name in self._lists
        width = tensor.shape[1] if is_list else 1
        elements = tensor.elements
        if isinstance(elements, Texts):
            strings = elements.take_strings(width)
            return api.FeatureValue(string_list=api.StringList(values=strings)) if is_list else strings[0]
        numbers: list[Number] = elements[row * width : (row + 1) * width].tolist()
        return _LISTS[elements.dtype.kind](numbers) if is_list else numbers[0]


def _bools(values: list[bool]) -> api.FeatureValue:
    return api.FeatureValue(bool_list=api.BoolList(values=values))


def _integers(values: list[int]) -> api.FeatureValue:
    return api.FeatureValue(int64_list=api.Int64List(values=values))


def _doubles(values: list[float]) -> api.FeatureValue:
    return api.FeatureValue(double_list=api.DoubleList(values=values))


_LISTS: Final[Mapping[str, Callable[[Any], api.FeatureValue]]] = MappingProxyType(
    {"b": _bools, "i": _integers, "f": _doubles}
)
"""By the kinds of numpy's types."""
