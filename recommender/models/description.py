"""Combine a model's card, metadata and outputs into one Model, or say where they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from recommender.domain import Feature, Model, Times, Types, Users
from recommender.engine.contract import Contract
from recommender.errors import ModelError
from recommender.models.artifact import Artifact
from recommender.models.features import feature_of, open_tokens

_KEYS = ("items", "default_k", "max_k", "longest_history")


def describe(artifact: Artifact, contract: Contract, metadata: Mapping[str, str], width: int | str | None) -> Model:
    """The model's name and limits: from its card, else from its metadata, its outputs and its file name.

    `metadata` is the file's own, `width` the last dimension of the recommendations, a number where it is
    fixed. Raises ModelError if these contradict each other, or do not say how many recommendations it gives.
    """
    told = _told(metadata, artifact.path)
    fixed_k = width if isinstance(width, int) else None
    card = artifact.card
    if card is not None:
        model = Model(
            artifact.name,
            artifact.version,
            card.items,
            card.default_k,
            card.max_k,
            card.longest_history,
            card.score_tolerance,
            frozenset(card.never_recommended),
            card.padding_id,
            card.history_items,
            None if card.users is None else Users(card.users.count, card.users.first, card.users.unknown),
            None if card.history_types is None else Types(**card.history_types.model_dump()),
            None if card.history_times is None else Times(**card.history_times.model_dump()),
            _features(artifact, contract),
            card.reads_history,
        )
    else:
        default_k = told.get("default_k") or fixed_k or _k_of_file(artifact.path)
        if default_k is None:
            raise ModelError(
                f"{artifact.path} has no card, and neither its metadata nor its output says how many recommendations "
                "it gives; export it with `recommender export`, or name it {K}_model.onnx"
            )
        max_k = told.get("max_k", default_k) if contract.takes_k else default_k
        model = Model(
            artifact.name,
            artifact.version,
            told.get("items"),
            default_k,
            max_k,
            told.get("longest_history"),
            0.0,
            users=Users(told["users"]) if told.get("users") else None,
            history_types=Types(told["history_types"]) if told.get("history_types") else None,
            history_times=Times() if "history_times" in contract.inputs else None,
        )
    faults = _contradictions(model, told, fixed_k, takes_k=contract.takes_k)
    faults += _undeclared(model, contract)
    if faults:
        raise ModelError(f"{artifact.path} contradicts itself: {'; '.join(faults)}; export the model again")
    return model


def _undeclared(model: Model, contract: Contract) -> Iterator[str]:
    """Inputs that the model has and does not describe, or the reverse."""
    told = {"user": ("users", model.users), "history_types": ("history_types", model.history_types)}
    for name, (key, described) in told.items():
        if name in contract.inputs and described is None:
            yield (
                f"it has an input {name}, and neither its card nor its metadata recommender.{key} says how many "
                "there are"
            )
        elif name not in contract.inputs and described is not None:
            yield f"it says how many {key} it takes, and has no input {name}"
    if ("history_times" in contract.inputs) != (model.history_times is not None):
        yield (
            "it has an input history_times, and its card has no history_times"
            if model.history_times is None
            else "its card says that it takes history_times, but it has no such input"
        )


def _features(artifact: Artifact, contract: Contract) -> tuple[Feature, ...]:
    """The features that the card declares. Raises ModelError if two have one name, or one that the contract has."""
    declared = artifact.card.features if artifact.card else ()
    names = [feature.name for feature in declared]
    for name in names:
        if names.count(name) > 1 or contract.has(name):
            raise ModelError(f"{artifact.path}: the card declares a feature {name}, a name that is taken already")
    tokens = open_tokens(artifact)
    return tuple(
        feature_of(feature, tokens[feature.name].numbers if feature.name in tokens else None) for feature in declared
    )


def _contradictions(model: Model, told: Mapping[str, int], fixed_k: int | None, *, takes_k: bool) -> list[str]:
    stated = {key: getattr(model, key) for key in _KEYS}
    stated["users"] = None if model.users is None else model.users.count
    stated["history_types"] = None if model.history_types is None else model.history_types.count
    faults = [
        f"its card says {key} {stated[key]} and its metadata {value}"
        for key, value in told.items()
        if stated[key] != value
    ]
    if not takes_k and model.max_k > model.default_k:
        faults.append(f"max_k {model.max_k} needs an input k, without which it always returns {model.default_k}")
    if model.default_k > model.max_k:
        faults.append(f"default_k {model.default_k} is above max_k {model.max_k}")
    never = model.never_recommended
    if model.items is not None and never and max(never) >= model.items:
        faults.append(f"its never-recommend list has the item {max(never)}, and ids run to {model.items - 1}")
    if model.items is not None and model.max_k > model.items:
        faults.append(f"max_k {model.max_k} is above the {model.items} items of its catalogue")
    if fixed_k is not None and fixed_k != model.default_k:
        faults.append(f"it returns {fixed_k} recommendations and says {model.default_k}")
    return faults


def _told(metadata: Mapping[str, str], path: Path) -> dict[str, int]:
    """The whole numbers that the model's own metadata gives."""
    told = {}
    for key in (*_KEYS, "users", "history_types"):
        text = metadata.get(f"recommender.{key}", "")
        if text:
            if not text.isdecimal():
                raise ModelError(f"{path} says in its metadata that recommender.{key} is {text!r}, not a whole number")
            told[key] = int(text)
    return told


def _k_of_file(path: Path) -> int | None:
    number = path.name.removesuffix("_model.onnx")
    return int(number) if number != path.name and number.isdecimal() and int(number) > 0 else None
