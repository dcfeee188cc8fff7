"""Names of the inputs, and the fields of a RecommendRequest that they map to."""

from __future__ import annotations

import re
from typing import Final

from recommender.errors import InvalidRequestError, Violation

HISTORY: Final = "user_history"
TYPES: Final = "history_types"
TIMES: Final = "history_times"
INPUTS: Final = (
    HISTORY,
    "history_length",
    TYPES,
    TIMES,
    "k",
    "excluded",
    "candidates",
    "candidates_length",
    "user",
)
_FIELDS: Final = {
    "item_ids": HISTORY,
    "item_keys": HISTORY,
    "excluded_item_ids": "excluded",
    "excluded_item_keys": "excluded",
    "candidate_item_ids": "candidates",
    "candidate_item_keys": "candidates",
    "limit": "k",
    "user_id": "user",
    "user_key": "user",
    "history_type_ids": TYPES,
    "history_type_keys": TYPES,
}
"""Fields of a RecommendRequest, and the inputs that map to them."""
_WORDS: Final = {
    "neither item_ids nor item_keys": "no item",
    "by user_id": "by its id",
    "user_id": "user",
    "user_key": "user",
    "by history_type_ids": "by their ids",
    "history_type_ids": TYPES,
    "history_type_keys": TYPES,
}
"""The same where descriptions name fields."""
_FEATURE: Final = re.compile(r"\bfeatures\[(.*?)\]")


def about_inputs(error: InvalidRequestError, row: int | None) -> InvalidRequestError:
    """Reword an error about a RecommendRequest for the inputs of its fields, and for a row if one is given."""
    place = "" if row is None else f"row {row}: "
    return type(error)(
        *(Violation(_field(each.field), place + _description(each.description)) for each in error.violations)
    )


def _field(theirs: str) -> str:
    name, bracket, rest = _FEATURE.sub(r"\1", theirs).partition("[")
    return _FIELDS.get(name, name) + bracket + rest


def _description(theirs: str) -> str:
    said = _FEATURE.sub(r"\1", theirs)
    for word, ours in _WORDS.items():
        said = said.replace(word, ours)
    return said
