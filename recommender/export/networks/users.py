"""Networks whose `forward` takes users, and their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from torch import Tensor, nn

from recommender.domain import UnknownUsers, Users
from recommender.export.errors import ExportError
from recommender.export.networks.inputs import takes
from recommender.export.obstacles import failure
from recommender.export.options import ExportOptions


def users_of(network: nn.Module, options: ExportOptions) -> Users | None:
    """The users that the network's `forward` takes as `user`; None if it takes none.

    Their number is the network's `known_users` or what the options say, else the rows of its `user_embeddings()` less
    that of unknown users. Raises ExportError where `forward` and these say different things.
    """
    name = type(network).__name__
    rows = _rows(network)
    told = said(name, "first_user", network, options, 1)
    unknown = _unknown(said(name, "unknown_user", network, options, "row" if told == 1 else "fallback"))
    stated = said(name, "known_users", network, options, None if rows is None else rows - int(told == 1))
    if not takes(network, "user"):
        if stated is not None or options.user_vocabulary is not None:
            raise ExportError(
                f"{name} has users, but its forward takes none; add the argument `user`, int64 [batch], or leave out "
                "what says that it has users."
            )
        return None
    if stated is None:
        raise ExportError(
            f"{name}.forward takes `user`, but nothing says how many there are; give known_users, their "
            "number, or user_embeddings(), or --users."
        )
    if not isinstance(stated, int) or stated < 1:
        raise ExportError(f"{name} has {stated!r} users; give a whole number of at least 1.")
    if told not in (0, 1) or not isinstance(told, int):
        raise ExportError(f"first_user is {told!r}; give 1, where 0 is an unknown user, or 0.")
    if told == 0 and unknown != "fallback":
        raise ExportError(
            f"first_user is 0, so {name} has no number for an unknown user, and unknown_user is {unknown!r}; "
            "give 'fallback', or let users begin at 1."
        )
    if rows is not None and rows < stated + told:
        raise ExportError(f"{name} has {stated} users from {told} on, but user_embeddings() has {rows} rows.")
    return Users(stated, told, unknown)


def checked_users(users: Users, rows: int) -> list[int]:
    """Users for `rows` rows to check with: the first, the last, an unknown one where that is ranked for, and others."""
    drawn = np.random.default_rng(2).integers(users.first, users.last, rows, endpoint=True).tolist()
    known = [users.first, users.last, users.first if users.unknown == "fallback" else 0]
    return [*known, *drawn][:rows]


def alone(users: Users | None) -> Sequence[int]:
    """Users to check without a history."""
    if users is None:
        return ()
    return (users.first, users.last, *([0] if users.unknown == "row" else []))


def _unknown(told: object) -> UnknownUsers:
    words: tuple[UnknownUsers, ...] = get_args(UnknownUsers)
    for word in words:
        if word == told:
            return word
    raise ExportError(f"unknown_user is {told!r}; give 'row', 'history' or 'fallback'.")


def _rows(network: nn.Module) -> int | None:
    """The number of rows of the table of users; None without one."""
    told = getattr(network, "user_embeddings", None)
    try:
        told = told() if callable(told) and not isinstance(told, Tensor | nn.Embedding) else told
    except Exception as error:
        raise ExportError(
            f"{type(network).__name__}.user_embeddings() failed: {failure(error)}. It is called without arguments."
        ) from error
    if isinstance(told, nn.Embedding):
        told = told.weight
    if told is None:
        return None
    if not isinstance(told, Tensor) or told.dim() != 2:  # noqa: PLR2004
        shape = tuple(told.shape) if isinstance(told, Tensor) else type(told).__name__
        raise ExportError(f"{type(network).__name__}.user_embeddings() is {shape}; it must be a tensor [rows, d].")
    return len(told)


def said(name: str, field: str, network: nn.Module, options: ExportOptions, default: object) -> object:
    """The value of the network or of the options, else the default. Raises ExportError if they disagree."""
    option = field.removeprefix("known_")  # a network's `users` is often its table
    told, stated = getattr(network, field, None), getattr(options, option)
    if told is not None and stated not in (None, told):
        raise ExportError(f"{option} is {stated}, but {name}.{field} is {told}; leave the first out.")
    return next((value for value in (told, stated) if value is not None), default)
