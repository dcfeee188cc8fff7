"""Options of an export, as one frozen record that is checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from recommender.export.errors import ExportError

MAX_K = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

BUILT_IN = ("reference", "sasrec", "gru4rec", "tisasrec", "two-tower")

Coarse = Literal["auto", "none", "int8"]
Head = Literal["blocks", "plain"]
Side = Literal["right", "left"]
UnknownUser = Literal["row", "history", "fallback"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a built-in network; see `ExportOptions`."""

    items: int = 10_000
    dim: int = 32
    layers: int = 2
    heads: int = 2
    longest_history: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """One export.

    `network` is "reference", "sasrec", "gru4rec", "tisasrec", "two-tower" or "module:factory". `items`, `dim`,
    `layers`, `heads` and `longest_history` shape the built-in ones; None means the number in `Sizes`. A factory makes
    its own network, which `items`, `dim` and `longest_history` must not contradict; the last is used if the network has
    none. The file is `output`, or `weights/{num_recommendations}_model.onnx`. `max_k` is the largest limit of a
    request; None means `min(items, 1000)`. `checkpoint` is a `state_dict` written by `torch.save`. `vocabulary` is a
    text file with the items' keys, line i the key of item i; `fallback` is one with recommendations for unknown users,
    best first: a key a line with a vocabulary, else an item id. `never_recommend` is one with items that no answer may
    hold, in the same form. `parity` is a JSONL file of histories with the rankings of the training side, as
    `read_parity` takes it. `padding_id` is an id that means padding to the network, on its `padding_side`; no item has
    it. `users`, `first_user` and `unknown_user` are those of the card's `users`, if the network has none;
    `user_vocabulary` is a text file with the users' keys, the first user's first. `types`, `first_type`,
    `unknown_type`, `default_type` and `type_vocabulary` are the same for event types, and `default_time` and
    `sorted_times` are those of the card's `history_times`. `embedding_space` names the space of item vectors: vectors
    made for one version fit all others of that name. `features` is a JSON file that declares the features of `forward`,
    if the network does not. A table of at least `external_data_bytes` goes into a separate file beside the model.
    `head` "plain" is one product and one selection, for GPUs; "blocks" is quicker on CPUs. `items_table` is a table of
    the items' attributes, by key or by id, that becomes a file of the version.

    Raises ExportError for a number or a name that is invalid by itself.
    """

    network: str = "reference"
    items: int | None = None
    dim: int | None = None
    seed: int = 0
    layers: int | None = None
    heads: int | None = None
    longest_history: int | None = None
    num_recommendations: int = 10
    max_k: int | None = None
    output: Path | None = None
    checkpoint: Path | None = None
    vocabulary: Path | None = None
    fallback: Path | None = None
    never_recommend: Path | None = None
    parity: Path | None = None
    padding_id: int | None = None
    padding_side: Side = "right"
    users: int | None = None
    first_user: int | None = None
    unknown_user: UnknownUser | None = None
    user_vocabulary: Path | None = None
    types: int | None = None
    first_type: int | None = None
    unknown_type: int | None = None
    default_type: int | None = None
    type_vocabulary: Path | None = None
    default_time: int | None = None
    sorted_times: bool | None = None
    features: Path | None = None
    items_table: Path | None = None
    name: str | None = None
    version: str = "1"
    embedding_space: str | None = None
    exported_by: str = "recommender export"
    coarse: Coarse = "auto"
    head: Head = "blocks"
    external_data_bytes: int = 1_500_000_000

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_choices()
        if self.padding_id is not None and self.padding_id < 0:
            raise ExportError(f"padding_id is {self.padding_id}; give an id that the network knows, 0 or more.")
        if self.padding_side == "left" and self.padding_id is None:
            raise ExportError("padding_side is 'left', which needs padding_id: the id that fills a history up.")
        if self.embedding_space is not None and not _NAME.fullmatch(self.embedding_space):
            raise ExportError(
                f"embedding_space is {self.embedding_space!r}; use letters, digits, '.', '_' and '-', the first a "
                "letter or digit."
            )
        if self.max_k is not None and self.max_k < self.num_recommendations:
            raise ExportError(
                f"max_k is {self.max_k}, below num_recommendations = {self.num_recommendations}; "
                "raise the first or lower the second."
            )
        for field, value in (("name", self.model_name), ("version", self.version)):
            if not _NAME.fullmatch(value):
                raise ExportError(
                    f"{field} is {value!r}; use letters, digits, '.', '_' and '-', the first a letter or digit."
                )

    def _check_choices(self) -> None:
        for field, choices in (("coarse", Coarse), ("head", Head), ("padding_side", Side)):
            *others, last = (repr(choice) for choice in get_args(choices))
            if repr(getattr(self, field)) not in (*others, last):
                raise ExportError(f"{field} is {getattr(self, field)!r}; give {', '.join(others)} or {last}.")
        if self.head == "plain" and self.coarse == "int8":
            raise ExportError("head is 'plain' and coarse is 'int8', which needs blocks; give one of them.")

    def _check_sizes(self) -> None:
        for field in ("items", "dim", "layers", "heads", "longest_history", "num_recommendations"):
            number = getattr(self, field)
            if number is not None and number < 1:
                raise ExportError(f"{field} is {number}; give a number of at least 1.")
        for field in ("layers", "heads"):
            if self.network not in BUILT_IN and getattr(self, field) is not None:
                raise ExportError(f"{field} shapes a built-in network, and {self.network} is not one; leave it out.")

    @property
    def sizes(self) -> Sizes:
        """The sizes of a built-in network."""
        given = {each.name: getattr(self, each.name) for each in fields(Sizes)}
        return Sizes(**{name: number for name, number in given.items() if number is not None})

    @property
    def model_name(self) -> str:
        """`name`, or the network's name with what a name may not hold replaced by '-'."""
        return self.name if self.name is not None else re.sub(r"[^A-Za-z0-9._-]+", "-", self.network)

    @property
    def path(self) -> Path:
        """Where the model file goes."""
        return self.output if self.output is not None else Path("weights", f"{self.num_recommendations}_model.onnx")
