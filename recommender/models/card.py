"""The card: a model's description, as JSON next to its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recommender.domain import LARGEST_FLOAT, Query, UnknownUsers
from recommender.engine.files import open_regular

SCHEMA_VERSION = 1
MODEL_NAME, CARD_NAME = "model.onnx", "card.json"
"""Names of model and card in a folder that holds just one version."""
_READ_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileRole = Literal[
    "model",
    "external_data",
    "vocabulary",
    "fallback",
    "user_vocabulary",
    "type_vocabulary",
    "feature_vocabulary",
    "items_table",
]
FeatureType = Literal["int64", "float32", "bool", "string"]
Given: TypeAlias = bool | int | float | tuple[bool | int | float, ...]
"""A feature's value for the model: one number, or as many as its width."""
Default: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...]


_PerItem: TypeAlias = tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]

Files: TypeAlias = dict[Path, FileRole]
"""Files of one artifact with what they are in it, the model first."""


class _Record(BaseModel):
    """Frozen; fields of a later schema are kept out of the way rather than refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CardFile(_Record):
    """One file of the artifact: `path` is relative to the card's folder, `size` is in bytes."""

    path: str
    role: FileRole
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class _Asked(_Record):
    """A request, as the model reads it.

    `user`, `history_types` and `history_times` are for the inputs of these names, if the model has them. The last two
    are as long as the history, or empty for the model's defaults.
    `features` are what its features are given, by name, numbers for strings too; one that is left out has its default.
    """

    item_ids: tuple[int, ...]
    user: Annotated[int, Field(ge=0)] = 0
    history_types: _PerItem = ()
    history_times: _PerItem = ()
    features: dict[str, Given] = {}

    @model_validator(mode="after")
    def _has_one_for_each_item(self) -> Self:
        for name, values in (("history_types", self.history_types), ("history_times", self.history_times)):
            if len(values) not in (0, len(self.item_ids)):
                raise ValueError(f"{name} are {len(values)}, and the history has {len(self.item_ids)} items")
        return self


class Golden(_Asked):
    """One request with the answer the model must give: ids in order, best first, and their scores."""

    recommendations: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def query(self) -> Query:
        """Ask for it."""
        return Query(
            self.item_ids,
            len(self.recommendations),
            user=self.user,
            history_types=self.history_types,
            history_times=self.history_times,
        )


class Expected(_Asked):
    """One history with what the model ranked for it where it was trained: ids, best first, none of them `excluded`."""

    recommendations: tuple[int, ...]
    excluded: tuple[int, ...] = ()

    def query(self, k: int, longest_history: int | None) -> Query:
        """Ask for it, with the most recent items that the model reads."""
        start = -(longest_history or len(self.item_ids)) if self.item_ids else 0
        parts = (self.item_ids, self.history_types, self.history_times)
        history, types, times = (part[start:] for part in parts)
        return Query(history, k, self.excluded, user=self.user, history_types=types, history_times=times)


class CardUsers(_Record):
    """The users that a model takes: `count` consecutive ids from `first` on.

    If `first` is 1, the model gets 0 for an unknown user. `unknown` says how it ranks for one: `row` by a trained row,
    `history` by the history alone. `fallback` means that it cannot.
    """

    count: Annotated[int, Field(ge=1, lt=2**63)]
    first: Literal[0, 1] = 1
    unknown: UnknownUsers = "row"

    @model_validator(mode="after")
    def _has_a_row(self) -> Self:
        if self.first == 0 and self.unknown != "fallback":
            raise ValueError("user 0 is a user like any other where first is 0, so unknown must be 'fallback'")
        return self


class CardTypes(_Record):
    """The event types that a model distinguishes in histories: `count` consecutive ids from `first` on.

    If `first` is 1, histories of types are padded with 0, which is no type. `unknown` is the id for a type that it does
    not know, and `default` the id for each item of a history without types. If they are None, such a request is
    refused.
    """

    count: Annotated[int, Field(ge=1, lt=2**31)]
    first: Literal[0, 1] = 1
    unknown: Annotated[int, Field(ge=0)] | None = None
    default: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _reads_what_it_says(self) -> Self:
        last = self.first + self.count - 1
        for name, value in (("unknown", self.unknown), ("default", self.default)):
            if value is not None and value > last:
                raise ValueError(f"{name} is {value}, and ids of types run to {last}")
        return self


class CardTimes(_Record):
    """How a model reads the times of histories, in Unix milliseconds.

    `default` is the time of each item of a history without times; None refuses such a request. `sorted_times` refuses
    times that descend; else they are passed as they are.
    """

    default: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sorted_times: bool = False


class CardFeature(_Record):
    """An input of the model besides those of the contract: [batch], or [batch, `width`] for a list.

    A request without the feature has its `default`; without a default every request must have it. `minimum` and
    `maximum` bound numbers. Strings are the lines of a `vocabulary`, one of the card's files, of `tokens` keys: key i
    is number `first_token` + i to the model, and any other string is `unknown_token`.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    type: FeatureType
    width: Annotated[int, Field(ge=1, le=4096)] | None = None
    default: Default | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None
    vocabulary: str | None = None
    tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    first_token: Annotated[int, Field(ge=0, lt=2**31)] = 1
    unknown_token: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for fault in chain(self._faults_of_type(), self._faults_of_default()):
            raise ValueError(f"feature {self.name}: {fault}")
        return self

    def _faults_of_type(self) -> Iterator[str]:
        is_string = self.type == "string"
        if is_string != (self.vocabulary is not None) or is_string != (self.tokens is not None):
            yield "a vocabulary and the number of its tokens go with the type string, and with no other"
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if bounds and self.type not in ("int64", "float32"):
            yield f"minimum and maximum bound numbers, and its type is {self.type}"
        if not all(is_of(self.type, bound) for bound in bounds):
            yield f"its bounds are not of its type {self.type}"
        if bounds and bounds[0] > bounds[-1]:
            yield f"its minimum {self.minimum} is above its maximum {self.maximum}"

    def _faults_of_default(self) -> Iterator[str]:
        if self.default is None:
            return
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        if isinstance(self.default, tuple) != (self.width is not None) or self.width not in (None, len(values)):
            yield "its default is not a list of its width, or is one where it has no width"
        for value in values:
            if not is_of(self.type, value):
                yield f"its default {value!r} is not of its type {self.type}"
            elif not isinstance(value, str) and not self._within(value):
                yield f"its default {value!r} is outside its bounds"

    def _within(self, value: float) -> bool:
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)


def is_of(kind: FeatureType, value: float | str) -> bool:
    """Whether a value is of a type: whole numbers are float32 too, and a bool is neither."""
    if isinstance(value, str):
        return kind == "string"
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "int64":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return kind == "float32" and abs(value) <= LARGEST_FLOAT


class Origin(_Record):
    """Where a model was trained, if it was imported: the library's class with its hyper-parameters.

    `data_sha256` is the digest of the interactions that were given to the import, or that the library itself had at
    hand. If there is none, `no_digest` says why.
    """

    library: str
    library_version: str
    network: str
    parameters: dict[str, str | int | float | bool | None] = {}
    data_sha256: Sha256 | None = None
    no_digest: str | None = None


class Card(_Record):
    """The description of a model: its files with their digests, its limits, and answers that it must give.

    `items` is the size of the catalogue: recommended ids run from 0 to `items - 1`. Those in histories run to
    `history_items - 1`; None means the same. `default_k` is the number of recommendations for a request without a
    limit, `max_k` the largest limit. `embedding_size` is 0 if the network returns scores and no user vectors.
    `longest_history` is the most recent items that the network reads; None means any number. `never_recommended` are
    the items that no answer holds, ascending; histories may hold them. `padding_id` means padding to the network, so no
    history holds it. `users` is None if the model has no input `user`; the same holds for `history_types` and
    `history_times`. `features` are its inputs besides those of the contract. A model that does not `reads_history`
    ranks for requests without one. One that gives its `query_vector` can rank items that it lacks, by vectors of
    `embedding_size` numbers. Vectors of one version fit another that names the same `embedding_space`; None fits no
    other. Two rankings are equal if they differ only among items whose scores lie within `score_tolerance` of each
    other. `origin` is None if the model was not imported from a library.
    """

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    network: str
    items: Annotated[int, Field(ge=1)]
    history_items: Annotated[int, Field(ge=1)] | None = None
    embedding_size: Annotated[int, Field(ge=0)]
    default_k: Annotated[int, Field(ge=1)]
    max_k: Annotated[int, Field(ge=1)]
    longest_history: Annotated[int, Field(ge=1)] | None = None
    padding_id: Annotated[int, Field(ge=0)] | None = None
    users: CardUsers | None = None
    history_types: CardTypes | None = None
    history_times: CardTimes | None = None
    features: tuple[CardFeature, ...] = ()
    reads_history: bool = True
    query_vector: bool = False
    embedding_space: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    never_recommended: tuple[Annotated[int, Field(ge=0)], ...] = ()
    score_tolerance: Annotated[float, Field(ge=0)]
    opset: Annotated[int, Field(ge=1)]
    exported_by: str
    exported_at: datetime
    exported_with: dict[str, str]
    origin: Origin | None = None
    files: tuple[CardFile, ...]
    golden: tuple[Golden, ...]
    parity: tuple[Expected, ...] = ()


def card_path(model: Path) -> Path:
    """The path of this model file's card: `10_model.onnx` → `10_model.card.json`, `model.onnx` → `card.json`."""
    return model.with_name(CARD_NAME) if model.name == MODEL_NAME else model.with_suffix(".card.json")


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file's bytes in lower-case hex, read in pieces; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def card_files(files: Files) -> tuple[CardFile, ...]:
    """The card's entries for these files."""
    return tuple(
        CardFile(path=file.name, role=role, size=file.stat().st_size, sha256=file_sha256(file))
        for file, role in files.items()
    )
