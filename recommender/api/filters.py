"""The filter of a request: read from its message, and turned into a mask of a version's items."""

from __future__ import annotations

from recommender.catalogue.attributes.filters import Attributes, Filter, ParameterValue
from recommender.catalogue.attributes.opening import EXTRA
from recommender.errors import InvalidRequestError, Violation
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api


def read_filter(request: api.RecommendRequest) -> Filter | None:
    """The filter of a request that keeps the rules of the proto; None if it has none.

    Raises InvalidRequestError if it has parameters and no filter.
    """
    if not request.filter:
        if request.filter_parameters:
            raise InvalidRequestError(Violation("filter_parameters", "they belong to a filter, and there is none"))
        return None
    if not request.filter_parameters:
        return Filter(request.filter)
    given = request.filter_parameters
    return Filter(request.filter, tuple((name, *_parameter(given[name])) for name in sorted(given)))


def attributes_of(version: Version) -> Attributes:
    """What is known of a version's items. Raises InvalidRequestError if that is nothing."""
    if version.attributes is None:
        raise InvalidRequestError(
            Violation(
                "filter",
                f"nothing is known of the items of model {version.model.label}: filters need a table of items "
                f"(RECOMMENDER_ITEMS, and the extra {EXTRA}) and a model with keys",
            )
        )
    return version.attributes


def selected(version: Version, wanted: Filter | None) -> ItemMask | None:
    """The items of a version that a filter selects; None without a filter.

    Takes milliseconds unless it was prepared. Raises InvalidRequestError if the version cannot evaluate it.
    """
    if wanted is None:
        return None
    if "candidates" not in version.abilities:
        label = version.model.label
        raise InvalidRequestError(Violation("filter", f"model {label} was exported without the input `candidates`"))
    return attributes_of(version).mask(wanted)


def _parameter(value: api.FeatureValue) -> tuple[str, ParameterValue]:
    """The type of a parameter, and its value."""
    field = value.WhichOneof("value") or ""
    content = getattr(value, field)
    return field, tuple(content.values) if field.endswith("_list") else content
