"""Parity: answers from where a model was trained, which it is held to wherever it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from recommender.domain import Ranking, Times, Types, Users
from recommender.errors import ModelError
from recommender.models.card import CardFeature, Expected, Given
from recommender.models.features import Numbers, read_given

_MOST = 1_000
"""Histories of one file: all are tried at every load."""
_SHARE = 2.0**-13
"""Scores that differ by this share of the largest one may have changed places between two programs."""
_TIMES_END = 1 << 63
_SPARE = 10
"""Places beyond those expected that are looked at for items that changed places with the last one."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names that a parity file may use: items by id or by a key of `ids`, users and types of events likewise.

    Recommended ids are below `items`, those of histories below `readable`. `users` and `types` are None if the model
    takes none, and so are `times`. `features` are as the card declares them, with the numbers of their strings.
    """

    items: int
    readable: int
    ids: Mapping[str, int] | None = None
    users: Users | None = None
    user_ids: Mapping[str, int] | None = None
    types: Types | None = None
    type_ids: Mapping[str, int] | None = None
    times: Times | None = None
    features: Mapping[str, tuple[CardFeature, Numbers | None]] = field(default_factory=dict)

    def user(self, told: Mapping[str, object]) -> int:
        """The user of a line, 0 if it names none. Raises ValueError if the model does not know it."""
        named = told.get("user")
        if named is None:
            return 0
        if self.users is None:
            raise ValueError("it names a user, and the model takes none")
        if isinstance(named, str) and self.user_ids is not None and named in self.user_ids:
            return self.user_ids[named]
        if isinstance(named, int) and self.users.first <= named <= self.users.last:
            return named
        raise ValueError(f"{named!r} is not a user that the model knows")

    def history_types(self, told: Mapping[str, object]) -> tuple[int, ...]:
        """The types of a line. Raises ValueError if the model does not know one, or needs some that the line lacks."""
        named = _of_each_item(told, "history_types", self.types)
        return tuple(map(self._type, named))

    def _type(self, named: object) -> int:
        found = self.type_ids.get(named) if isinstance(named, str) and self.type_ids is not None else named
        known = range(0) if self.types is None else range(self.types.first, self.types.last + 1)
        if isinstance(found, int) and not isinstance(found, bool) and found in known:
            return found
        raise ValueError(f"{named!r} is not a type that the model knows")

    def history_times(self, told: Mapping[str, object]) -> tuple[int, ...]:
        """The times of a line. Raises ValueError if the model cannot read them, or needs some that the line lacks."""
        named = _of_each_item(told, "history_times", self.times)
        times = tuple(time for time in named if isinstance(time, int) and not isinstance(time, bool))
        if len(times) < len(named) or not 0 <= min(times, default=0) <= max(times, default=0) < _TIMES_END:
            raise ValueError("history_times are not all Unix milliseconds")
        if self.times is not None and self.times.sorted_times and list(times) != sorted(times):
            raise ValueError("history_times descend, and the model takes times that ascend only")
        return times

    def given(self, told: Mapping[str, object]) -> dict[str, Given]:
        """The features of a line. Raises ValueError if the model does not take one so, or needs another."""
        given = told.get("features", {})
        if not isinstance(given, dict) or given.keys() - self.features.keys():
            raise ValueError(f"its features are no object of the model's features: {given!r}")
        for name, (declared, _) in self.features.items():
            if declared.default is None and name not in given:
                raise ValueError(f"it lacks the feature {name}, for which the model has no default")
        return {name: read_given(*self.features[name], value) for name, value in given.items()}


def read_parity(path: Path, names: Names) -> tuple[Expected, ...]:
    """Read a JSONL file of `{"history": [...], "recommendations": [...]}`, best first; each by item ids or by keys.

    A line may name a `user`, and have an empty history then. It may have `history_types` and `history_times`, each as
    long as the history, and `features`, an object of values by name. Items in `excluded` were left out of the ranking.
    Raises ModelError that names the line at fault.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}; give a JSONL file") from error
    found = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            told = json.loads(line)
            history, recommendations, excluded = (
                tuple(_item(named, names.ids, end) for named in listed)
                for listed, end in (
                    (told["history"], names.readable),
                    (told["recommendations"], names.items),
                    (told.get("excluded", ()), names.items),
                )
            )
            user, types, times = names.user(told), names.history_types(told), names.history_times(told)
            features = names.given(told)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f'{path}, line {number}: {error}; give {{"history": [...], "recommendations": [...]}} of ids or keys'
            ) from error
        nobody = not history and told.get("user") is None
        if nobody or not recommendations or len(set(recommendations)) < len(recommendations):
            raise ModelError(f"{path}, line {number}: a list is empty, or recommends an item twice")
        if not set(excluded).isdisjoint(recommendations):
            raise ModelError(f"{path}, line {number}: it recommends an item that it excludes")
        found.append(
            Expected(
                item_ids=history,
                user=user,
                history_types=types,
                history_times=times,
                features=features,
                recommendations=recommendations,
                excluded=excluded,
            )
        )
    if not 0 < len(found) <= _MOST:
        raise ModelError(f"{path} has {len(found)} histories; give 1 to {_MOST}: each is tried at every load")
    return tuple(found)


def wanted(expected: Expected, max_k: int) -> int:
    """How many recommendations to ask for to compare them. Raises ModelError if the model gives fewer than expected."""
    count = len(expected.recommendations)
    if count > max_k:
        raise ModelError(f"the parity file expects {count} recommendations, and the model gives {max_k} at most")
    return min(count + _SPARE, max_k)


def disparity(expected: Expected, ranking: Ranking, tolerance: float) -> str | None:
    """How a ranking of `wanted` items differs from what is expected; None if only equal scores change places."""
    right = expected.recommendations
    if not ranking.scores:
        got = tuple(ranking.item_ids[: len(right)])
        return None if got == right else f"it ranks {list(got)}"
    scores = dict(zip(ranking.item_ids, ranking.scores, strict=True))
    allowed = max(tolerance, _SHARE * max(map(abs, ranking.scores)))
    for item in right:
        if item not in scores:
            return f"item {item} is not among its best {len(scores)}"
    for one, other in pairwise(right):
        if scores[other] - scores[one] > allowed:
            return f"item {one} scores {scores[one]:g} and item {other} behind it {scores[other]:g}"
    better = [item for item in scores if item not in right and scores[item] - scores[right[-1]] > allowed]
    return f"item {better[0]}, which is not expected, scores {scores[better[0]]:g}" if better else None


def refusal(expected: Expected, fault: str) -> str:
    """The sentence that refuses a model for a disparity."""
    return (
        f"it does not rank as where it was trained: for {expected.query(0, None).told} "
        f"{_some(expected.recommendations)} is expected, but {fault}"
    )


def _of_each_item(told: Mapping[str, object], field: str, taken: Types | Times | None) -> Sequence[object]:
    """A list of a line with a value for each item of its history; empty if it has none, and the model has a default.

    Raises ValueError if the list is of another length, missing, or not `taken` by the model.
    """
    values = told.get(field) or []
    history = told.get("history")
    if not isinstance(values, list) or not isinstance(history, list) or len(values) not in (0, len(history)):
        raise ValueError(f"{field} is not as long as the history")
    if values and taken is None:
        raise ValueError(f"it has {field}, and the model takes none")
    if history and not values and taken is not None and taken.default is None:
        raise ValueError(f"it lacks {field}, for which the model has no default")
    return values


def _item(named: object, ids: Mapping[str, int] | None, end: int) -> int:
    if isinstance(named, str):
        if ids is None or named not in ids:
            raise ValueError(f"{named!r} is not a key of the vocabulary")
        named = ids[named]
    if not isinstance(named, int) or isinstance(named, bool) or not 0 <= named < end:
        raise ValueError(f"{named!r} is not an item id from 0 to {end - 1}")
    return named


def _some(items: Sequence[int]) -> str:
    return f"{list(items[:10])}" + (" and more" if len(items) > 10 else "")  # noqa: PLR2004 (as many as fit a line)
