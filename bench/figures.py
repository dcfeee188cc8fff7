"""Figures of benchmarks: the median of the rounds, their spread, and the interval of the median."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

_RESAMPLES = 10_000


def spread(values: Sequence[float], form: str = ",.3g") -> str:
    """Median, least and most; the value alone if there is but one."""
    middle = f"{statistics.median(values):{form}}"
    return f"{middle} [{min(values):{form}} … {max(values):{form}}]" if len(values) > 1 else middle


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by a percentile bootstrap whose seed is fixed."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def kept(values: Sequence[float], least: float) -> str:
    """Whether a ratio of interleaved pairs keeps `least`: the median, its interval, and the verdict.

    The verdict is `met` if the median is at least `least`. It is `inconclusive` if the interval holds `least` and is
    wider than the distance that is asked about, which says that the pairs are too few or the machine too busy.
    """
    median, (low, high) = statistics.median(values), interval(values)
    wide = low < least < high and high - low > 2 * abs(1 - least)
    verdict = "inconclusive" if wide else "met" if median >= least else "not met"
    return f"{median:.3f}, 95 % interval {low:.3f} … {high:.3f}, {len(values)} pairs: {least:g} is {verdict}"
