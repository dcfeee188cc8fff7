"""The request of a table's row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recommender.api.values import feature_value
from recommender.bulk.columns import FEATURE, LISTS_OF_IDS, LISTS_OF_KEYS
from recommender.errors import InvalidRequestError, Violation
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_IDS_END = 1 << 31


def request_of(row: Mapping[str, Any], version: Version, *, exclude_history: bool) -> api.RecommendRequest:
    """Write a row, its columns called by their meaning, as a request.

    Raises InvalidRequestError if a value does not fit into it.
    """
    request = api.RecommendRequest(exclude_history=exclude_history)
    for name in (*LISTS_OF_IDS, *LISTS_OF_KEYS):
        if values := row.get(name):
            try:
                getattr(request, name).extend(values)
            except ValueError as error:
                place, value = next(each for each in enumerate(values) if not -_IDS_END <= each[1] < _IDS_END)
                raise InvalidRequestError(
                    Violation(f"{name}[{place}]", f"{value} is too large: ids have 32 bits")
                ) from error
    for name, value in row.items():
        if name.startswith(FEATURE) and value is not None:
            feature = name.removeprefix(FEATURE)
            with _fits(f'features["{feature}"]'):
                request.features[feature].CopyFrom(feature_value(value))
    _put_filter(request, row)
    if (limit := row.get("limit")) is not None:
        with _fits("limit"):
            request.limit = limit
    user = row.get("user")
    if user is not None and version.model.users is not None:
        if isinstance(user, str) and (version.user_vocabulary is not None or not user.isdecimal()):
            request.user_key = user
        else:
            with _fits("user_id"):
                request.user_id = int(user)
    return request


def _put_filter(request: api.RecommendRequest, row: Mapping[str, Any]) -> None:
    if (wanted := row.get("filter")) is not None:
        request.filter = wanted
    for name, value in _parameters(row.get("filter_parameters")):
        with _fits(f'filter_parameters["{name}"]'):
            request.filter_parameters[name].CopyFrom(feature_value(value))


def _parameters(given: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 (a cell of any column)
    """The parameters of a struct, a map or a JSON object; one that is null is left out.

    Raises InvalidRequestError for text that is no JSON object.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise InvalidRequestError(Violation("filter_parameters", f"it is not JSON: {error}")) from error
        if not isinstance(given, dict):
            raise InvalidRequestError(Violation("filter_parameters", "it is not a JSON object"))
    pairs = given.items() if isinstance(given, dict) else given or ()
    return [(name, value) for name, value in pairs if value is not None]


@contextmanager
def _fits(field: str) -> Iterator[None]:
    """Turn the error of a value that a message does not take into the request's own."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(Violation(field, f"the message does not hold it: {error}")) from error
