"""Networks whose `forward` takes types or times of a history's items, and the declarations of these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from recommender.domain import Times, Types
from recommender.export.errors import ExportError
from recommender.export.networks.inputs import History, takes
from recommender.export.networks.users import said
from recommender.export.options import ExportOptions
from recommender.export.truth import Ids

_START = 1_700_000_000_000
_LONGEST_GAP = 86_400_000
"""Milliseconds between two items of a history to check with: a day at most."""


def types_of(network: nn.Module, options: ExportOptions) -> Types | None:
    """The types of events that the network's `forward` takes as `history_types`; None if it takes none.

    Raises ExportError where `forward` and what the network or the options say of them are contrary.
    """
    name = type(network).__name__
    known = said(name, "known_types", network, options, None)
    first = said(name, "first_type", network, options, 1)
    unknown = said(name, "unknown_type", network, options, None)
    default = said(name, "default_type", network, options, None)
    if not takes(network, "history_types"):
        if options.type_vocabulary is not None or any(each is not None for each in (known, unknown, default)):
            raise ExportError(
                f"{name} has types of events, but its forward takes none; add the argument `history_types`, int64 "
                "[batch, history], or leave out what says that it has types."
            )
        return None
    if known is None:
        raise ExportError(
            f"{name}.forward takes `history_types`, but nothing says how many there are; give known_types, their "
            "number, or --types."
        )
    if not isinstance(known, int) or known < 1:
        raise ExportError(f"{name} has {known!r} types of events; give a whole number of at least 1.")
    if first not in (0, 1) or not isinstance(first, int):
        raise ExportError(f"first_type is {first!r}; give 1, where 0 is padding, or 0.")
    last = first + known - 1
    return Types(known, first, _number("unknown_type", unknown, last), _number("default_type", default, last))


def times_of(network: nn.Module, options: ExportOptions) -> Times | None:
    """How the network's `forward` reads times as `history_times`; None if it takes none.

    Raises ExportError where `forward` and what the network or the options say of them are contrary.
    """
    name = type(network).__name__
    default = said(name, "default_time", network, options, None)
    are_sorted = said(name, "sorted_times", network, options, None)
    if not takes(network, "history_times"):
        if default is not None or are_sorted is not None:
            raise ExportError(
                f"{name} reads times, but its forward takes none; add the argument `history_times`, int64 "
                "[batch, history], or leave out what says that it reads times."
            )
        return None
    return Times(_number("default_time", default, 2**63 - 1), bool(are_sorted))


def checked_types(types: Types, histories: Sequence[History]) -> Ids:
    """Types for histories to check with, and other ones behind their ends: int64 [rows, widest]."""
    drawn = np.random.default_rng(6).integers(types.first, types.last, _shape(histories), endpoint=True)
    drawn[0, 0] = types.last
    return drawn


def checked_times(histories: Sequence[History]) -> Ids:
    """Ascending times for histories to check with, also behind their ends: int64 [rows, widest], Unix milliseconds."""
    gaps = np.random.default_rng(7).integers(0, _LONGEST_GAP, _shape(histories))
    return _START + gaps.cumsum(axis=1)


def _shape(histories: Sequence[History]) -> tuple[int, int]:
    return len(histories), max(map(len, histories))


def _number(field: str, value: object, last: int) -> int | None:
    if value is None or (isinstance(value, int) and 0 <= value <= last):
        return value
    raise ExportError(f"{field} is {value!r}; give a whole number from 0 to {last}, or leave it out.")
