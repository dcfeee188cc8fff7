"""Settings as the environment spells them."""

from __future__ import annotations

PREFIX = "RECOMMENDER_"


def key_of(field: str) -> str:
    """The key of a field in the environment."""
    return PREFIX + field.upper()


def text_of(value: object) -> str:
    """A value as text of the environment; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
