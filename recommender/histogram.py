"""Histograms of durations, counted on the hot path."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final, TypeAlias

LATENCY_BOUNDS: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)  # fmt: skip
"""Upper bounds of the buckets of every latency, in seconds.

A run on a small catalogue takes 0.1 ms, a full batch on a million items 0.1 s, and a latency objective lies between. So
steps are fine from 0.1 to 100 ms.
"""
BUCKETS: Final = len(LATENCY_BOUNDS) + 1
Histogram: TypeAlias = tuple[int, ...]
"""Durations by bucket: place i counts those up to LATENCY_BOUNDS[i] that no place before it counts, the last all longer
ones."""


@dataclass(slots=True)
class Durations:
    """Durations so far: a Histogram that can be added to, and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CallExemplar:
    """The last call in a bucket of durations. Its ids are hexadecimal, empty if it is not sampled."""

    seconds: float
    at: float
    """End of the call in seconds since the epoch."""
    trace_id: str
    span_id: str


def bucket(seconds: float) -> int:
    """The place of a duration in a Histogram."""
    return bisect_left(LATENCY_BOUNDS, seconds)
