"""Coarse scores: batches of which sizes a model ranks from its table in 8 bits.

A model that has such a table takes `coarse_rows` int64 [2], the smallest and the largest batch that starts from it.
Whether that is quicker than float32 depends on the CPU, so it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

COARSE_ROWS = "coarse_rows"
"""The input's name. Its default is every batch, for programs that do not set it."""
COARSE_PART = "coarse"
"""Names of nodes that only a batch from 8 bits runs begin with this and a dot."""
Span: TypeAlias = npt.NDArray[np.int64]
"""A smallest and a largest number of rows."""
EVERY_BATCH: Span = np.array([1, np.iinfo(np.int64).max])
NO_BATCH: Span = np.array([1, 0])
_LITTLE = 1.05
"""8 bits may take so many times as long as float32: on several threads they take half the CPU then."""
_TRIES = 5
_ENOUGH_SECONDS = 0.2
"""After so long no more tries: what takes long is measured well, and a start waits for it."""
_SIZES = (1, 4, 16, 64, 256, 1024)
"""Batches that are tried, and the largest there is."""

T = TypeVar("T")


def takes_coarse_rows(session: onnxruntime.InferenceSession) -> bool:
    """Whether a model has a table in 8 bits."""
    return any(port.name == COARSE_ROWS for port in session.get_overridable_initializers())


def quickest_span(seconds: Callable[[int, Sequence[Span]], Sequence[float]], most: int) -> Span:
    """The batches of up to `most` rows that are quicker from 8 bits, by the `seconds` that so many rows take each way.

    Sizes in between and above go as the next smaller one that was tried.
    """
    sizes = sorted({most, *(size for size in _SIZES if size < most)})
    won = []
    for rows in sizes:
        coarse, exact = seconds(rows, (EVERY_BATCH, NO_BATCH))
        won.append(coarse <= _LITTLE * exact)
    if not any(won):
        return NO_BATCH
    first = won.index(True)
    end = [*won, False].index(False, first)
    return np.array([sizes[first], EVERY_BATCH[1] if end == len(sizes) else sizes[end] - 1])


def quickest(run: Callable[[T], object], ways: Sequence[T]) -> list[float]:
    """The seconds that the quickest of a few runs takes in each of these ways; what they raise goes through.

    The ways take turns, so that a slow moment of the machine is not one's alone.
    """
    taken: list[list[float]] = [[] for _ in ways]
    for way in ways:
        run(way)  # The first run of a shape allocates.
    for _ in range(_TRIES):
        for way, seconds in zip(ways, taken, strict=True):
            started = time.perf_counter()
            run(way)
            seconds.append(time.perf_counter() - started)
        if sum(map(sum, taken)) > _ENOUGH_SECONDS:
            break
    return [min(seconds) for seconds in taken]
