"""The options of a request besides the ids of its history, and the model inputs among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias

from recommender.api.features import Given, given_features, untaken_features
from recommender.api.rules import AskedRules, filters_of, read_rules
from recommender.catalogue.attributes.filters import Filter, ParameterValue
from recommender.errors import InputsError, InvalidRequestError, RecommenderError, Violation
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_NAMED_VIOLATIONS = 10
"""A caller's status stays small, however many inputs it brings."""
Prepared: TypeAlias = dict[tuple[Version, Filter], ItemMask | RecommenderError]
"""The items of versions that filters select, or why they are not known."""


class Items(NamedTuple):
    """A list of items as a request names them, by ids or by keys."""

    ids: Sequence[int]
    keys: Sequence[str]


@dataclass(slots=True)
class Options:
    """The options of a request besides the ids of its history; the first two come from the limits."""

    reject_unknown: bool = False
    reject_inputs: bool = True
    history_keys: Sequence[str] = ()
    excluded: Items | None = None
    candidates: Items | None = None
    exclude_history: bool = False
    limit: int = 0
    min_score: float | None = None
    routing_key: str = ""
    user: int | str | None = None
    """By id or by key."""
    features: Mapping[str, Given] | None = None
    history_type_keys: Sequence[str] = ()
    history_type_ids: Sequence[int] = ()
    history_times: Sequence[int] = ()
    filter: Filter | None = None
    rules: AskedRules | None = None
    filters: Mapping[str, Filter] | None = None
    """All of its filters by their fields, those of boosts too; None if it has none."""
    prepared: Prepared | None = None
    """The items that the filters select, for each version that was prepared to read the request."""

    def untaken(self, version: Version, *, reject: bool) -> tuple[str, ...]:
        """The fields with inputs that a version does not take.

        Raises InputsError if there are any, and the version is to `reject` them.
        """
        untaken: dict[str, str] = {}
        if self.user is not None and version.model.users is None:
            untaken[user_field(self.user)] = "no user"
        if self.features and (beside := untaken_features(version, self.features)):
            untaken |= beside
        if self.history_type_keys and version.model.history_types is None:
            untaken["history_type_keys"] = "no types of events"
        if self.history_type_ids and version.model.history_types is None:
            untaken["history_type_ids"] = "no types of events"
        if self.history_times and version.model.history_times is None:
            untaken["history_times"] = "no times"
        if untaken and reject:
            raise InputsError(
                *(
                    Violation(field, f"model {version.model.label} takes {_instead(version, what)}: leave {field} out")
                    for field, what in islice(untaken.items(), _NAMED_VIOLATIONS)
                ),
                untaken=untaken,
            )
        return tuple(untaken)


def _instead(version: Version, untaken: str) -> str:
    """Options that a version does not take, and the inputs that it takes besides a history."""
    model = version.model
    inputs = {
        "users": model.users,
        "features": model.features,
        "types of events": model.history_types,
        "times": model.history_times,
    }
    taken = [name for name, each in inputs.items() if each]
    return f"{untaken}, but {' and '.join(taken)}" if taken and "but" not in untaken else untaken


def user_field(named: int | str) -> str:
    """The field of a request that names a user so."""
    return "user_key" if isinstance(named, str) else "user_id"


def read_options(request: api.RecommendRequest, *, reject_unknown: bool, reject_inputs: bool) -> Options:
    """The options of a request that keeps the rules of the proto.

    Raises InvalidRequestError if the types or times of its history are not as many as its items.
    """
    if request.history_type_keys or request.history_type_ids or request.history_times:
        _check_lengths(request)
    parameters = _parameters(request)
    wanted = parameters._replace(text=request.filter) if request.filter else None
    rules = read_rules(request, parameters)
    return Options(
        reject_unknown,
        reject_inputs,
        request.item_keys[:],
        _items(request.excluded_item_ids, request.excluded_item_keys),
        _items(request.candidate_item_ids, request.candidate_item_keys),
        request.exclude_history,
        request.limit,
        request.min_score if request.HasField("min_score") else None,
        request.routing_key,
        request.user_id if request.HasField("user_id") else request.user_key or None,
        given_features(request.features) if request.features else None,
        request.history_type_keys[:],
        request.history_type_ids[:],
        request.history_times[:],
        wanted,
        rules,
        filters_of(wanted, rules) or None,
    )


def _check_lengths(request: api.RecommendRequest) -> None:
    items = len(request.item_ids) or len(request.item_keys)
    lengths = {
        "history_type_keys": len(request.history_type_keys),
        "history_type_ids": len(request.history_type_ids),
        "history_times": len(request.history_times),
    }
    wrong = [
        Violation(
            name, f"its length is {length} and that of the history {items}: give one value for each item, in its order"
        )
        for name, length in lengths.items()
        if length not in (0, items)
    ]
    if wrong:
        raise InvalidRequestError(*wrong)


def _items(ids: Sequence[int], keys: Sequence[str]) -> Items | None:
    """A list of a message as a separate value; None if it is empty."""
    return Items(ids[:], keys[:]) if ids or keys else None


def _parameters(request: api.RecommendRequest) -> Filter:
    """The parameters of a request's filters, and no text.

    Raises InvalidRequestError if it has parameters and no filter.
    """
    given = request.filter_parameters
    if not given:
        return Filter("")
    if not request.filter and not request.boosts:
        raise InvalidRequestError(Violation("filter_parameters", "they belong to a filter, which is missing"))
    return Filter("", tuple((name, *_parameter(given[name])) for name in sorted(given)))


def _parameter(value: api.FeatureValue) -> tuple[str, ParameterValue]:
    """The type of a parameter, and its value."""
    field = value.WhichOneof("value") or ""
    content = getattr(value, field)
    return field, tuple(content.values) if field.endswith("_list") else content
