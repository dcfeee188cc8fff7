"""Boosts and bounds, as a request brings them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from recommender.catalogue.attributes.filters import Filter
from recommender.errors import InvalidRequestError, Violation
from recommender.recommend_api.v1 import recommend_api_pb2 as api


class AskedBoost(NamedTuple):
    """A boost by the filter that selects its items."""

    filter: Filter
    factor: float
    addend: float


class AskedRules(NamedTuple):
    """Boosts, and how many items may have one value of an attribute."""

    boosts: tuple[AskedBoost, ...]
    bounds: tuple[tuple[str, int], ...]


def read_rules(request: api.RecommendRequest, parameters: Filter) -> AskedRules | None:
    """The rules of a request that keeps those of the proto, with the parameters of this filter; None if it has none."""
    if not request.boosts and not request.max_per:
        return None
    boosts = tuple(
        AskedBoost(
            parameters._replace(text=boost.filter),
            boost.factor if boost.WhichOneof("effect") == "factor" else 1.0,
            boost.addend,
        )
        for boost in request.boosts
    )
    return AskedRules(boosts, tuple((bound.attribute, bound.n) for bound in request.max_per))


def filters_of(wanted: Filter | None, rules: AskedRules | None) -> Mapping[str, Filter]:
    """The filters of a request, by their fields."""
    found = {} if wanted is None else {"filter": wanted}
    for place, boost in enumerate(() if rules is None else rules.boosts):
        found[f"boosts[{place}].filter"] = boost.filter
    return found


@contextmanager
def about(field: str) -> Iterator[None]:
    """Say of what a request is refused for that it is about this field."""
    try:
        yield
    except InvalidRequestError as error:
        raise InvalidRequestError(*(Violation(field, each.description) for each in error.violations)) from None
