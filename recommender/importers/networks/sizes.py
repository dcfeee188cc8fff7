"""The sizes of a trained model that its arrays do not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from recommender.export.errors import ExportError

Value: TypeAlias = str | int | float | bool | None
"""A hyper-parameter."""


class Sizes:
    """Named values; each reader raises ExportError if a value is absent or of another kind."""

    def __init__(self, values: Mapping[str, Value], owner: str) -> None:
        self._values = values
        self._owner = owner

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def whole(self, name: str) -> int:
        """A whole number of at least 1."""
        value = self._values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(name, "a whole number of at least 1")
        return value

    def number(self, name: str) -> float:
        """A number."""
        value = self._values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, "a number")
        return float(value)

    def word(self, name: str) -> str:
        """A word."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a word")
        return value

    def flag(self, name: str) -> bool:
        """Yes or no."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def _wrong(self, name: str, kind: str) -> ExportError:
        return ExportError(
            f"{self._owner} says {name} = {self._values.get(name)!r}; expected is {kind}. "
            "It is of another class or version than this network takes."
        )
