"""Totals that never decrease, made of counts that may restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from recommender.observability.instruments import DataPoint, Distribution, Instrument, Reading


class Totals:
    """Adds up the counts of versions that come back: their counts restart each time.

    Otherwise a counter would decrease, which the protocol allows only with a new start time, and a delta would be
    negative.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[Instrument, tuple[str, ...]], tuple[float, ...]] = {}
        self._ended: dict[tuple[Instrument, tuple[str, ...]], tuple[float, ...]] = {}

    def of(self, reading: Reading) -> Reading:
        """The reading with counters and histograms as totals."""
        return [
            (each, list(self._totals(each, points)) if each.kind in ("counter", "histogram") else points)
            for each, points in reading
        ]

    def _totals(self, instrument: Instrument, points: Iterable[DataPoint]) -> Iterator[DataPoint]:
        for point in points:
            key = (instrument, point.attributes)
            now = _numbers(point.value)
            last = self._last.get(key, now)
            self._last[key] = now
            if any(after < before for before, after in zip(last, now, strict=True)):
                self._ended[key] = _sums(self._ended.get(key, (0,) * len(last)), last)
            ended = self._ended.get(key)
            yield point if ended is None else replace(point, value=_as(point.value, _sums(ended, now)))


def _numbers(value: float | Distribution) -> tuple[float, ...]:
    return (*value.counts, value.total) if isinstance(value, Distribution) else (value,)


def _sums(ones: tuple[float, ...], others: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(one + other for one, other in zip(ones, others, strict=True))


def _as(value: float | Distribution, numbers: tuple[float, ...]) -> float | Distribution:
    if not isinstance(value, Distribution):
        return numbers[0]
    *counts, total = numbers
    return replace(value, counts=tuple(int(count) for count in counts), total=total)
