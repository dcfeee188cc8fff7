"""Figures of benchmarks: medians, spreads and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from bench.figures import interval, kept, spread


def test_a_spread_has_the_median_between_the_least_and_the_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2 [1 … 3]"
    assert spread([1000.0, 3000.0, 2000.0], ",.0f") == "2,000 [1,000 … 3,000]"
    assert spread([2.0]) == "2"


def test_the_interval_of_a_median_narrows_with_more_pairs() -> None:
    drawn = np.random.default_rng(1).normal(1.0, 0.1, 400)
    few, many = interval(list(drawn[:20])), interval(list(drawn))

    assert few[0] < many[0] < 1.0 < many[1] < few[1]
    assert interval([0.97] * 20) == (0.97, 0.97)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.99] * 20, "0.98 is met"),
        ([0.97] * 20, "0.98 is not met"),
        ([0.5, 1.5] * 10, "0.98 is inconclusive"),
    ],
)
def test_a_ratio_is_met_not_met_or_too_wide_to_tell(values: list[float], verdict: str) -> None:
    assert kept(values, 0.98).endswith(f"{len(values)} pairs: {verdict}")
