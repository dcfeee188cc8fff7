"""The user of a request, as a version knows its users."""

from __future__ import annotations

from typing import NamedTuple

from recommender.api.options import user_field
from recommender.errors import InputsError, InvalidRequestError, Violation
from recommender.models.version import Version


class User(NamedTuple):
    """A request's user as a version reads it; the default if the request names none."""

    number: int = 0
    """For the model's input `user`."""
    enough: bool = False
    """Whether the model ranks for it without a history."""
    ranked: bool = True
    """Whether the model ranks for it at all."""
    unknown: bool = False
    """Whether it is named, and not known."""
    known: bool = False
    """Whether it is named, and one of the model's."""


_UNREAD = User()


def known_user(version: Version, named: int | str) -> int | None:
    """The number of a user for the model's input `user`; None if the version does not know it."""
    users = version.model.users
    if users is None:
        return None
    if isinstance(named, int):
        return named if users.first <= named <= users.last else None
    place = None if version.user_vocabulary is None else version.user_vocabulary.id(named)
    return None if place is None else users.first + place


def find_user(version: Version, named: int | str | None) -> User:
    """Find a user by id or by key; None means no user.

    Raises InvalidRequestError if the version takes users and has no keys for them.
    """
    users = version.model.users
    if users is None:
        return _UNREAD
    if isinstance(named, str) and version.user_vocabulary is None:
        raise InvalidRequestError(
            Violation("user_key", f"model {version.model.label} has no keys for users: name the user by user_id")
        )
    number = None if named is None else known_user(version, named)
    if number is not None:
        return User(number, enough=True, known=True)
    return User(0, users.unknown == "row", users.unknown != "fallback", named is not None)


def nobody_known(version: Version, named: int | str | None) -> InvalidRequestError:
    """The refusal of a request without a known user, by a version that ranks for known users only and has no list."""
    users = version.model.users
    ids = "" if users is None else f", ids {users.first} to {users.last}"
    ranks = f"model {version.model.label} ranks for its known users only{ids}, and has no fallback list"
    if named is None:
        return InputsError(Violation("user_id", f"the request names no user, and {ranks}"))
    return InvalidRequestError(Violation(user_field(named), f"the user is not known: {ranks}"))
