"""The features that a card declares: as the engine takes them, and the numbers of their strings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from recommender.domain import LARGEST_FLOAT, Feature, FeatureKind, FeatureValue, Number
from recommender.errors import ModelError
from recommender.models.artifact import Artifact
from recommender.models.card import CardFeature, Default, Given, is_of
from recommender.models.vocabulary import Vocabulary

_FEW = 10_000
"""So many strings take about a megabyte."""
_KINDS: Mapping[str, FeatureKind] = {"int64": "int64", "float32": "float", "bool": "bool", "string": "string"}

_PLAIN_TYPES: Mapping[FeatureKind, type[Number | str]] = {"int64": int, "float": float, "bool": bool, "string": str}

Numbers: TypeAlias = Callable[[Iterable[str]], list[int]]
"""Converts strings of a feature to the model's numbers."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The strings that a feature distinguishes, and their numbers: `unknown` for any other."""

    vocabulary: Vocabulary
    first: int
    unknown: int
    few: Mapping[str, int] | None = None
    """The number of each string, if they are few: a look-up takes a quarter of the vocabulary's time."""

    def number(self, string: str) -> int:
        """The model's number for a string."""
        if self.few is not None:
            return self.few.get(string, self.unknown)
        place = self.vocabulary.id(string)
        return self.unknown if place is None else self.first + place

    def numbers(self, strings: Iterable[str]) -> list[int]:
        """The model's numbers for these strings."""
        return [self.unknown if place is None else self.first + place for place in self.vocabulary.ids(strings)]


class Taken(NamedTuple):
    """A feature of a model, ready for the one value of a request that needs no conversion.

    That is a value of exactly this `type`, from `low` to `high`, or a string of `tokens`. No value of a list is so.
    """

    name: str
    type: object
    low: float
    high: float
    tokens: Tokens | None
    default: FeatureValue | None


def taken(features: Iterable[Feature], tokens: Mapping[str, Tokens]) -> tuple[Taken, ...]:
    """The features of a model, in its order, with the strings that they distinguish."""
    return tuple(
        Taken(
            feature.name,
            _PLAIN_TYPES[feature.kind] if feature.width is None else type(None),
            *bounds(feature),
            tokens.get(feature.name),
            feature.default,
        )
        for feature in features
    )


def bounds(feature: Feature) -> tuple[float, float]:
    """The least and the largest number that a request may hold for a feature."""
    most = LARGEST_FLOAT if feature.kind == "float" else math.inf
    return (-most if feature.low is None else feature.low, most if feature.high is None else feature.high)


def open_tokens(artifact: Artifact) -> dict[str, Tokens]:
    """Map the vocabularies of an artifact's features, by the names of these.

    Small ones are looked through. Raises ModelError if a vocabulary is not one of the card's files, or is not what the
    card says.
    """
    opened = {}
    for feature in artifact.card.features if artifact.card else ():
        if feature.vocabulary is not None and feature.tokens is not None:
            path = artifact.feature_vocabulary(feature.vocabulary)
            if path is None:
                raise ModelError(
                    f"the card's feature {feature.name} has the vocabulary {feature.vocabulary!r}, which is not "
                    "among its files; export the model again"
                )
            vocabulary = Vocabulary.open(path, feature.tokens, of="token")
            few: dict[str, int] | None = None
            if len(vocabulary) <= _FEW:
                vocabulary.check()
                keys = vocabulary.keys(range(len(vocabulary)))
                few = dict(zip(keys, range(feature.first_token, feature.first_token + len(keys)), strict=True))
            opened[feature.name] = Tokens(vocabulary, feature.first_token, feature.unknown_token, few)
    return opened


def feature_of(declared: CardFeature, numbers: Numbers | None) -> Feature:
    """A feature as the engine takes it; `numbers` are those of its strings."""
    low, high, default = declared.minimum, declared.maximum, declared.default
    if declared.tokens is not None:
        last = declared.first_token + declared.tokens - 1
        low, high = min(declared.first_token, declared.unknown_token), max(last, declared.unknown_token)
    kind = _KINDS[declared.type]
    given = None if default is None else _given(kind, default, numbers)
    return Feature(declared.name, kind, declared.width, given, low, high)


def read_given(declared: CardFeature, numbers: Numbers | None, value: object) -> Given:
    """Convert a feature's JSON value for the model. Raises ValueError if the feature cannot have it."""
    is_list = isinstance(value, list)
    values: list[Any] = value if isinstance(value, list) else [value]
    if is_list != (declared.width is not None) or declared.width not in (None, len(values)):
        raise ValueError(f"feature {declared.name} has {len(values)} values, and not its width")
    for each in values:
        if not isinstance(each, int | float | str) or not is_of(declared.type, each):
            raise ValueError(f"{each!r} is not a value of the feature {declared.name}, which is {declared.type}")
    return _given(_KINDS[declared.type], tuple(values) if is_list else values[0], numbers)


def _given(kind: FeatureKind, value: Default, numbers: Numbers | None) -> FeatureValue:
    values = value if isinstance(value, tuple) else (value,)
    given: list[Number]
    if kind == "string":
        given = [] if numbers is None else [*numbers(str(each) for each in values)]
    else:
        given = [float(each) if kind == "float" else each for each in values if not isinstance(each, str)]
    return tuple(given) if isinstance(value, tuple) else given[0]


def in_order(features: Sequence[Feature], given: Mapping[str, Given]) -> tuple[FeatureValue, ...]:
    """The features of a query from what is given by name.

    Raises ModelError if one is named that the model does not take, or has another width.
    """
    if not given:
        return ()
    known = {feature.name: feature for feature in features}
    for name, value in given.items():
        width = len(value) if isinstance(value, tuple) else None
        if name not in known or known[name].width != width:
            raise ModelError(f"an answer of the card has the feature {name}, which the model does not take so")
    return tuple(given.get(feature.name, feature.filler) for feature in features)


def by_name(features: Sequence[Feature], values: Sequence[FeatureValue]) -> dict[str, Given]:
    """The features of a query as the card keeps them."""
    return {feature.name: value for feature, value in zip(features, values, strict=bool(values))}
