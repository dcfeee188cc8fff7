"""Errors of the table of items, and of filters over it."""

from __future__ import annotations

from recommender.errors import InvalidRequestError, StartError, Violation


class TableError(StartError):
    """A table of items cannot be read, or breaks a rule; the message says where."""


def filter_fault(why: str, at: int) -> InvalidRequestError:
    """The error of a filter that cannot be evaluated; `at` is the place of the character at fault, from 1 on."""
    return InvalidRequestError(Violation("filter", f"at character {at}: {why}"))
