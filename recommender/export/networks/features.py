"""Features that a network's `forward` takes by name, as the network or a file declares them. Needs no torch."""

from __future__ import annotations

import inspect
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import ValidationError

from recommender.domain import Feature, Query
from recommender.engine.features import extreme_features, pack_features, some_features
from recommender.export.errors import ExportError
from recommender.export.lists import lines_of
from recommender.export.obstacles import failure
from recommender.models.card import CardFeature, Files
from recommender.models.features import Numbers, feature_of
from recommender.models.vocabulary import write_vocabulary

_SAID = frozenset({"type", "width", "default", "minimum", "maximum", "first_token", "unknown_token"})
_STRINGS = ("tokens", "vocabulary")
_STANDARD = ("user_history", "history_length", "user", "history_types", "history_times")
_HISTORY = 2
"""The history and its length may have any name."""


@dataclass(frozen=True, slots=True)
class Declared:
    """Declared features, in their order, and the strings of those that have any, by the features' names."""

    cards: tuple[CardFeature, ...] = ()
    strings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features as the engine takes them."""
        return tuple(feature_of(card, self._numbers(card)) for card in self.cards)

    def by_name(self) -> dict[str, tuple[CardFeature, Numbers | None]]:
        """Features that a parity file may name."""
        return {card.name: (card, self._numbers(card)) for card in self.cards}

    def write(self, model: Path) -> Files:
        """Write the vocabularies next to the model file; returns the files."""
        files: Files = {}
        for card in self.cards:
            if card.vocabulary is not None:
                path = model.with_name(card.vocabulary)
                write_vocabulary(self.strings[card.name], path)
                files[path] = "feature_vocabulary"
        return files

    def _numbers(self, card: CardFeature) -> Numbers | None:
        if card.name not in self.strings:
            return None
        known = {string: number for number, string in enumerate(self.strings[card.name], card.first_token)}
        return _numbers_of(known, card.unknown_token)


def _numbers_of(known: Mapping[str, int], unknown: int) -> Numbers:
    def numbers(strings: Iterable[str]) -> list[int]:
        return [known.get(string, unknown) for string in strings]

    return numbers


def features_of(network: object, file: Path | None, model: Path) -> Declared:
    """The features that a network's `feature_inputs` or a JSON `file` declares, held to its `forward`.

    Raises ExportError if a declaration makes no sense, or `forward` and the declarations name different features.
    """
    name = type(network).__name__
    told = getattr(network, "feature_inputs", None)
    if callable(told):
        try:
            told = told()
        except Exception as error:
            raise ExportError(f"{name}.feature_inputs() failed: {failure(error)}.") from error
    if told is not None and file is not None:
        raise ExportError(f"{name} has feature_inputs, and --features declares features too; leave one out.")
    if file is not None:
        declared = read_features_file(file, model)
    else:
        declared = Declared() if told is None else read_declared(told, Path(), model)
    _check_signature(network, name, [card.name for card in declared.cards])
    return declared


def read_features_file(file: Path, model: Path) -> Declared:
    """Read a JSON object of declarations by name; paths in it begin where the file is. Raises ExportError."""
    try:
        told = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} cannot be read: {error}; give a JSON object of features by name.") from error
    return read_declared(told, file.parent, model)


def read_declared(told: object, folder: Path, model: Path) -> Declared:
    """Read declarations by name, each a mapping of the fields of the card's `features`.

    A string has its `tokens` in a list, or a `vocabulary`, a text file with one a line. The vocabularies are written
    beside `model`. Raises ExportError that names the feature at fault.
    """
    if not isinstance(told, Mapping):
        raise ExportError(f"features are {type(told).__name__}; declare them in an object, by their names.")
    cards: list[CardFeature] = []
    strings: dict[str, tuple[str, ...]] = {}
    for name, said in told.items():
        if not isinstance(said, Mapping):
            raise ExportError(f'feature {name} is {said!r}; say what it is, as {{"type": "float32", "default": 0}}.')
        unknown = sorted(said.keys() - _SAID - {*_STRINGS})
        if unknown:
            raise ExportError(f"feature {name} has {unknown[0]!r}; give {', '.join(sorted(_SAID | {*_STRINGS}))}.")
        fields = {key: value for key, value in said.items() if key in _SAID}
        if any(key in said for key in _STRINGS):
            strings[name] = _strings(str(name), said, folder)
            slug = re.sub(r"[^A-Za-z0-9_-]", "-", name)
            file = f"{model.stem}.{slug}{len(cards) if slug != name else ''}.tokens"
            fields |= {"vocabulary": file, "tokens": len(strings[name])}
        try:
            cards.append(CardFeature.model_validate({"name": name, **fields}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            said_of = f"feature {name}: {where}: " if where else ""
            raise ExportError(f"{said_of}{first['msg'].removeprefix('Value error, ')}.") from error
    return Declared(tuple(cards), strings)


def checked_features(features: tuple[Feature, ...], rows: int) -> dict[str, npt.NDArray[Any]]:
    """Values for so many rows to check with, the least and the largest among them, by the features' names."""
    draw = random.Random(8)  # noqa: S311 (fixed values, and no secret)
    drawn = [*extreme_features(features), *(some_features(features, draw) for _ in range(rows))]
    return pack_features(features, [Query((), 1, features=each) for each in drawn[:rows]])


def _strings(name: str, said: Mapping[str, object], folder: Path) -> tuple[str, ...]:
    tokens, vocabulary = said.get("tokens"), said.get("vocabulary")
    if isinstance(vocabulary, str | Path) and tokens is None:
        return tuple(lines_of(folder / vocabulary))
    if not isinstance(tokens, list | tuple) or vocabulary is not None or not tokens:
        raise ExportError(f"feature {name}: give its strings once, as a list of tokens or as the path of a vocabulary.")
    for token in tokens:
        if not isinstance(token, str) or not token or "\0" in token or tokens.count(token) > 1:
            raise ExportError(f"feature {name}: {token!r} among its tokens is not a string, is empty, or occurs twice.")
    return tuple(tokens)


def _check_signature(network: object, name: str, declared: list[str]) -> None:
    """Raise ExportError unless `forward` has an argument for each declared feature, and no other without a default."""
    forward: Callable[..., object] = network.forward  # type: ignore[attr-defined]  # every module has one
    parameters = inspect.signature(forward).parameters
    for feature in declared:
        if feature in _STANDARD:
            raise ExportError(f"feature {feature} has the name of an input that every model may have; rename it.")
        if feature not in parameters:
            raise ExportError(
                f"{name} has the feature {feature}, and its forward takes none of that name; add the argument, or "
                "leave the declaration out."
            )
    needed = [
        each
        for each, parameter in parameters.items()
        if each not in declared
        and each not in _STANDARD
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    free = _HISTORY - sum(each in parameters for each in _STANDARD[:_HISTORY])
    if len(needed) > free:
        raise ExportError(
            f"{name}.forward takes {needed[-1]}, which is neither an input of every model nor a declared feature; "
            "declare it in feature_inputs or in the file of --features."
        )
