"""The types and times of a history's items, as a version reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

from recommender.api.options import Options
from recommender.domain import Times, Types
from recommender.errors import InputsError, Violation, quoted
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

T = TypeVar("T")

SURELY_SHORT = 64
"""Characters of a key that is within its limit of bytes however it is encoded."""
_NAMED_VIOLATIONS = 10
"""A caller's status stays small, however many types are unknown."""


class Events(NamedTuple):
    """A type and a time for each item of a history; none where the model takes none, or reads its default."""

    types: tuple[int, ...] = ()
    times: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()
    """Fields of the request that the model cannot read, and was not to refuse."""


NO_EVENTS = Events()


def plain_events(request: api.RecommendRequest, options: Options, items: int) -> int:
    """Put types and times into options, and return how many fields they are.

    Returns 0 if they may break a rule, or are not one for each of so many items.
    """
    ids, keys, times = request.history_type_ids[:], request.history_type_keys[:], request.history_times[:]
    given = [each for each in (ids, keys, times) if each]
    if (ids and keys) or any(len(each) != items for each in given):
        return 0
    if min(ids, default=0) < 0 or min(times, default=0) < 0:
        return 0
    if keys and not 0 < min(map(len, keys)) <= max(map(len, keys)) <= SURELY_SHORT:
        return 0
    options.history_type_ids, options.history_type_keys, options.history_times = ids, keys, times
    return len(given)


def read_events(version: Version, options: Options, places: range | list[int], *, leniently: bool = False) -> Events:
    """Read types and times at these places of the history, those of the items that the model reads.

    Raises InputsError if the model needs some that the request lacks, or does not know a type, or takes only times that
    ascend. Read `leniently`, the last two are ignored if the model has a default.
    """
    types, times = version.model.history_types, version.model.history_times
    if not places or (types is None and times is None):
        return NO_EVENTS
    ignored: list[str] = []

    def found(read: Callable[[], tuple[int, ...]], default: int | None) -> tuple[int, ...]:
        try:
            return read()
        except InputsError as error:
            if not (leniently and error.untaken and default is not None):
                raise
            ignored.extend(error.untaken)
            return ()

    return Events(
        () if types is None else found(partial(_types, version, types, options, places), types.default),
        () if times is None else found(partial(_times, version, times, options, places), times.default),
        tuple(ignored),
    )


def _types(version: Version, types: Types, options: Options, places: range | list[int]) -> tuple[int, ...]:
    label, vocabulary = version.model.label, version.type_vocabulary
    field = "history_type_keys" if options.history_type_keys else "history_type_ids"
    numbers: list[int | None]
    if options.history_type_keys:
        if vocabulary is None:
            raise InputsError(
                Violation(field, f"model {label} has no keys for types of events: name them by history_type_ids"),
                untaken=(field,),
            )
        keys = _at(options.history_type_keys, places)
        few = dict.fromkeys(keys)
        found = dict(zip(few, vocabulary.ids(few), strict=True))
        numbers = [None if (number := found[key]) is None else types.first + number for key in keys]
    elif options.history_type_ids:
        named = _at(options.history_type_ids, places)
        if types.first <= min(named) and max(named) <= types.last:
            return tuple(named)
        numbers = [number if types.first <= number <= types.last else None for number in named]
    elif types.default is None:
        field = "history_type_ids" if vocabulary is None else "history_type_keys"
        raise InputsError(
            Violation(
                field, f"model {label} reads types of events: give one for each item of the history, in its order"
            )
        )
    else:
        return ()
    unknown = [place for place, number in zip(places, numbers, strict=True) if number is None]
    if unknown and types.unknown is None:
        raise _unknown(version, types, options, unknown)
    return tuple(types.unknown or 0 if number is None else number for number in numbers)


def _at(values: Sequence[T], places: range | list[int]) -> Sequence[T]:
    """The values at these places."""
    return values[places.start : places.stop] if isinstance(places, range) else [values[place] for place in places]


def _unknown(version: Version, types: Types, options: Options, places: Sequence[int]) -> InputsError:
    """The refusal of types that the model does not know; it names the first few with their places."""
    field = "history_type_keys" if options.history_type_keys else "history_type_ids"
    named = options.history_type_keys or options.history_type_ids
    knows = "has no such key" if options.history_type_keys else f"knows the types {types.first} to {types.last}"
    return InputsError(
        *(
            Violation(f"{field}[{place}]", f"{quoted(named[place])} is unknown: model {version.model.label} {knows}")
            for place in places[:_NAMED_VIOLATIONS]
        ),
        untaken=(field,),
    )


def _times(version: Version, times: Times, options: Options, places: range | list[int]) -> tuple[int, ...]:
    label = version.model.label
    if not options.history_times:
        if times.default is None:
            raise InputsError(
                Violation(
                    "history_times",
                    f"model {label} reads times: give one for each item of the history, in its order, in Unix "
                    "milliseconds",
                )
            )
        return ()
    named = tuple(_at(options.history_times, places))
    if times.sorted_times:
        for place, (earlier, later) in zip(places[1:], pairwise(named), strict=True):
            if later < earlier:
                raise InputsError(
                    Violation(
                        f"history_times[{place}]",
                        f"{later} is before {earlier}, the time of the item before it, and model {label} takes times "
                        "that ascend only: send the oldest item first",
                    ),
                    untaken=("history_times",),
                )
    return named
