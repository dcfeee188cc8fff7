"""Errors of the table of items, and of filters over it."""

from __future__ import annotations

from recommender.errors import InvalidRequestError, StartError, Violation


class TableError(StartError):
    """A table of items cannot be read, or breaks a rule; the message says where."""


class FilterError(InvalidRequestError):
    """A filter cannot be evaluated; `at` is the place of the character that is at fault, from 1 on."""

    def __init__(self, why: str, at: int) -> None:
        super().__init__(Violation("filter", f"at character {at}: {why}"))
        self.at = at
