"""Changes of the catalogue, as callers in Python write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from recommender.api.values import Feature, feature_value
from recommender.recommend_api.v1 import catalogue_api_pb2 as api

_AT_ONCE = 1_000
"""Items that a call may have."""
_NUMBERS_AT_ONCE = 500_000
"""Numbers of vectors in a call: 2 MB."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item that a model lacks: a key, a vector of the model's `embedding_size`, and attributes for filters."""

    key: str
    vector: Sequence[float]
    bias: float = 0.0
    attributes: Mapping[str, Feature] = field(default_factory=dict)


def upserts(model: str, items: Iterable[NewItem]) -> Iterator[api.UpsertItemsRequest]:
    """The calls that add these items to a version, `name@version`."""
    request = api.UpsertItemsRequest(model=model)
    numbers = 0
    for item in items:
        if request.items and (len(request.items) == _AT_ONCE or numbers + len(item.vector) > _NUMBERS_AT_ONCE):
            yield request
            request, numbers = api.UpsertItemsRequest(model=model), 0
        added = request.items.add(key=item.key, vector=item.vector, bias=item.bias)
        for name, value in item.attributes.items():
            added.attributes[name].CopyFrom(feature_value(value))
        numbers += len(item.vector)
    if request.items:
        yield request


def removals(keys: Sequence[str], model: str = "") -> Iterator[api.RemoveItemsRequest]:
    """The calls that remove these new items, of one version or of all."""
    for start in range(0, len(keys), _AT_ONCE):
        yield api.RemoveItemsRequest(item_keys=keys[start : start + _AT_ONCE], model=model)
