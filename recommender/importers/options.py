"""Options of an import, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recommender.export.options import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """One import.

    `source` is a saved model, or a folder that the library's script wrote; for `vectors` a file of item vectors.
    `python` is the interpreter of the library's environment. `interactions` are those of the training: histories to
    check with and the fallback list are made of them. `item_keys` and `user_keys` are text files, for models without
    ids. `bias`, `encoder` and `similarity` are for `vectors`: a bias for each item, a network that makes a user's
    vector of a history instead of the mean, and whether the numbers are a similarity of items. `first_item` is the
    encoder's id of item 0, `padding_id` pads on the `padding_side`, `mask_id` follows the history; with none of the
    four it takes our numbers. `max_k` and `num_recommendations` are those of an export.
    """

    library: str
    source: Path
    output: Path
    python: Path | None = None
    interactions: Path | None = None
    item_keys: Path | None = None
    user_keys: Path | None = None
    never_recommend: Path | None = None
    bias: Path | None = None
    encoder: Path | None = None
    similarity: bool = False
    longest_history: int | None = None
    padding_id: int | None = None
    padding_side: Side | None = None
    first_item: int | None = None
    mask_id: int | None = None
    name: str | None = None
    version: str = "1"
    num_recommendations: int = 10
    max_k: int | None = None
    timeout: float = 3600.0
