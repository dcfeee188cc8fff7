"""Lists of Python's numbers as arrays of a run's feed.

The GIL is held meanwhile, and the event loop waits. `struct` looks at each number once; numpy first finds out what
they are.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from recommender.domain import Query

_NOTHING_EXCLUDED = np.empty((0, 2), np.int64)
_INT64_BYTES = 8


def int64(values: Sequence[int]) -> npt.NDArray[np.int64]:
    """An array of numbers, read-only."""
    return np.frombuffer(_packer(len(values))(*values), np.int64)


def padded(rows: Sequence[Sequence[int]], lengths: Sequence[int], behind: int) -> npt.NDArray[np.int64]:
    """Rows of these lengths as int64 [batch, the longest, or 1], each padded with the number behind it; read-only."""
    longest = max(lengths) or 1  # No column at all would be a shape that no network was traced with.
    padding = _packer(1)(behind) * longest
    parts: list[bytes] = []
    for row, length in zip(rows, lengths, strict=True):
        parts.append(_packer(length)(*row))
        if length < longest:
            parts.append(padding[_INT64_BYTES * length :])
    return np.frombuffer(b"".join(parts), np.int64).reshape(len(rows), longest)


def excluded(queries: Sequence[Query]) -> npt.NDArray[np.int64]:
    """The (row, item) pairs of all exclusions, int64 [nnz, 2]."""
    lists = [query.excluded for query in queries]
    if not any(lists):
        return _NOTHING_EXCLUDED
    lengths = list(map(len, lists))
    total = sum(lengths)
    pairs = np.empty((total, 2), np.int64)
    pairs[:, 0] = np.repeat(np.arange(len(queries)), lengths)
    pairs[:, 1] = np.fromiter(chain.from_iterable(lists), np.int64, total)
    return pairs


def candidates(queries: Sequence[Query]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The candidates of all rows, int64 [batch, c], padded with 0, and how many each has, int64 [batch]."""
    named = [query.candidates for query in queries]
    if named.count(None) == len(named):
        return _no_candidates(len(named))
    lists = [items or () for items in named]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    longest = max(int(lengths.max()), 1)  # No column at all would mean the whole catalogue.
    candidates = np.zeros((len(lists), longest), np.int64)
    candidates[np.arange(longest) < lengths[:, None]] = np.fromiter(
        chain.from_iterable(lists), np.int64, int(lengths.sum())
    )
    return candidates, lengths


@functools.lru_cache(maxsize=128)
def _no_candidates(rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What `_candidates` gives for rows that name none; read-only."""
    candidates, lengths = np.empty((rows, 0), np.int64), np.zeros(rows, np.int64)
    for array in (candidates, lengths):
        array.flags.writeable = False
    return candidates, lengths


@functools.lru_cache(maxsize=1024)
def _packer(count: int) -> Callable[..., bytes]:
    """The function that packs so many numbers. It is kept: to make one takes as long as to pack a dozen."""
    return struct.Struct(f"{count}q").pack
