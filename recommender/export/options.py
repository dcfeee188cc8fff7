"""What to export and where to, as one frozen record that is checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from recommender.export.errors import ExportError

MAX_K = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Coarse = Literal["none", "int8"]
Side = Literal["right", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """One export.

    `network` is "reference", "sasrec", "gru4rec" or "module:factory"; `items`, `dim`, `seed`, `layers`, `heads`
    and `longest_history` shape the first three and are ignored by a factory, which brings its own. The file
    is `output`, or `weights/{num_recommendations}_model.onnx`. `max_k` is the most a caller may ask
    for; None means `min(items, 1000)`. `checkpoint` is a `state_dict` written by `torch.save`.
    `vocabulary` is a text file with the items' keys, line i the key of item i; `fallback` is one with what to
    recommend where nothing is known, best first: a key a line where there is a vocabulary, else an item id.
    `never_recommend` is one with items that no answer may hold, in the same form. `padding_id` is an id that means
    padding to the network, which stands on its `padding_side`; no item has it. A table of at least
    `external_data_bytes` goes into a file of its own beside the model.

    Raises ExportError where a number or a name makes no sense by itself.
    """

    network: str = "reference"
    items: int = 10_000
    dim: int = 32
    seed: int = 0
    layers: int = 2
    heads: int = 2
    longest_history: int = 200
    num_recommendations: int = 10
    max_k: int | None = None
    output: Path | None = None
    checkpoint: Path | None = None
    vocabulary: Path | None = None
    fallback: Path | None = None
    never_recommend: Path | None = None
    padding_id: int | None = None
    padding_side: Side = "right"
    name: str | None = None
    version: str = "1"
    exported_by: str = "recommender export"
    coarse: Coarse = "none"
    external_data_bytes: int = 1_500_000_000

    def __post_init__(self) -> None:
        for field in ("items", "dim", "layers", "heads", "longest_history", "num_recommendations"):
            if getattr(self, field) < 1:
                raise ExportError(f"{field} is {getattr(self, field)}; give a number of at least 1.")
        if self.coarse not in get_args(Coarse):
            raise ExportError(f"coarse is {self.coarse!r}; give 'none' or 'int8'.")
        if self.padding_side not in get_args(Side):
            raise ExportError(f"padding_side is {self.padding_side!r}; give 'right' or 'left'.")
        if self.padding_id is not None and self.padding_id < 0:
            raise ExportError(f"padding_id is {self.padding_id}; give an id that the network knows, 0 or more.")
        if self.padding_side == "left" and self.padding_id is None:
            raise ExportError("padding_side is 'left', which needs padding_id: the id that fills a history up.")
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

    @property
    def model_name(self) -> str:
        """`name`, or the network's name with what a name may not hold replaced by '-'."""
        return self.name if self.name is not None else re.sub(r"[^A-Za-z0-9._-]+", "-", self.network)

    @property
    def path(self) -> Path:
        """Where the model file goes."""
        return self.output if self.output is not None else Path("weights", f"{self.num_recommendations}_model.onnx")
