"""`--feature name=value`: words become values of the types that the server's model takes.

`--parameter name=value` of a filter: words become what they look like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recommender.client import Feature
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_TRUTH = {"true": True, "false": False}


def split(words: Sequence[str], example: str = "a feature such as age=33") -> dict[str, str]:
    """The values of `name=value` words by their names. Raises ValueError if a name is missing or repeated."""
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"{word!r} is not {example}")
        if name in given:
            raise ValueError(f"{name} is given twice; a list is one value, such as tastes=0.5,2")
        given[name] = value
    return given


def as_they_look(given: Mapping[str, str]) -> dict[str, Feature]:
    """The values as their words look; one with commas is a list, of strings if its words look different."""
    return {
        name: _alike([each for each in word.split(",") if each]) if "," in word else _as_it_looks(word)
        for name, word in given.items()
    }


def _alike(words: Sequence[str]) -> Feature:
    """A list of the one type that all words look like, else of strings."""
    for read in (int, _finite, _truth):
        try:
            return [read(word) for word in words]
        except ValueError:
            pass
    return list(words)


def typed(given: Mapping[str, str], taken: Iterable[api.FeatureInput]) -> dict[str, Feature]:
    """The values as the model takes them; a feature that it does not list is guessed from its word.

    Raises ValueError if a word cannot be of the feature's type.
    """
    described = {feature.name: feature for feature in taken}
    return {
        name: _as_told(word, described[name]) if name in described else _as_it_looks(word)
        for name, word in given.items()
    }


def _as_told(word: str, feature: api.FeatureInput) -> Feature:
    read, called = _READERS.get(feature.type, (_as_it_looks, "a value"))
    try:
        return [read(each) for each in word.split(",") if each] if feature.width else read(word)
    except ValueError:
        kinds = f"{feature.width} of {called}, as 1,2" if feature.width else called
        raise ValueError(f"{feature.name} takes {kinds}, not {word!r}") from None


def _as_it_looks(word: str) -> int | float | str:
    """A whole number, else a number, else true or false, else a string."""
    for read in (int, _finite, _truth):
        try:
            return read(word)
        except ValueError:
            pass
    return word


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(word)
    return number


def _truth(word: str) -> bool:
    if word.lower() not in _TRUTH:
        raise ValueError(word)
    return _TRUTH[word.lower()]


_READERS: Mapping[int, tuple[Callable[[str], Any], str]] = {
    api.FEATURE_TYPE_INT64: (int, "a whole number"),
    api.FEATURE_TYPE_FLOAT: (float, "a number"),
    api.FEATURE_TYPE_BOOL: (_truth, "true or false"),
    api.FEATURE_TYPE_STRING: (str, "a string"),
}
