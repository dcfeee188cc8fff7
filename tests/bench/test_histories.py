"""What benchmarks ask with has the shape of real shops' histories."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.load import histories


def test_lengths_follow_the_power_law() -> None:
    lengths = np.array([len(history) for history in histories.drawn(20_000, 1000)])

    assert lengths.min() == 2
    assert lengths.max() <= 279
    # The mean of powerlaw(a, loc, scale) is loc + scale · a / (a + 1); whole items lose up to one.
    assert lengths.mean() == pytest.approx(2 + 277 * 0.07 / 1.07, abs=1)
    assert np.median(lengths) == 2


def test_few_items_come_often_and_most_seldom() -> None:
    seen = Counter(item for history in histories.drawn(20_000, 10_000) for item in history)
    counts = np.sort(np.array(list(seen.values())))[::-1]

    assert max(seen) < 10_000
    assert counts[:1000].sum() > 0.7 * counts.sum()


def test_histories_are_cut_to_the_most_recent_items_and_equal_seeds_draw_equal_ones() -> None:
    whole, cut = histories.drawn(500, 100), histories.drawn(500, 100, longest=5)

    assert cut == [history[-5:] for history in whole]
    assert whole != histories.drawn(500, 100, seed=2)


def test_a_file_has_one_history_a_line(tmp_path: Path) -> None:
    path = tmp_path / "histories"
    path.write_text("1 2 3\n4,5\n")

    assert histories.read(path) == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize(("text", "said"), [("1 2\nx\n", "line 2"), ("", "holds no history")])
def test_a_file_of_something_else_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "histories"
    path.write_text(text)

    with pytest.raises(ValueError, match=said):
        histories.read(path)
