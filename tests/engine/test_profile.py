"""What `recommender profile` measures and recommends."""

from __future__ import annotations

from recommender.engine import profile
from recommender.engine.profile import Point, advise


def point(threads: int, rows: int, ms: float, history: int = 20) -> Point:
    return Point(threads, rows, history, (ms / 1e3,) * 100)


def test_quantiles_are_durations_that_were_measured() -> None:
    seen = Point(1, 10, 1, tuple(range(1, 101)))
    assert (seen.quantile(0.5), seen.quantile(0.99), seen.quantile(1.0)) == (50, 99, 100)
    assert seen.throughput == 10 / 50
    assert Point(1, 1, 1, (3.0,)).quantile(0.99) == 3.0


def test_the_largest_batch_within_half_of_the_objective_is_recommended() -> None:
    points = [point(1, 1, 1), point(1, 8, 3), point(1, 64, 10), point(1, 128, 30)]
    advice = advise(points, objective=0.020, history=20)
    assert advice.point == points[2]
    assert "RECOMMENDER_MAX_BATCH_SIZE=64" in advice.lines
    assert "RECOMMENDER_THREADS=1" in advice.lines
    assert "RECOMMENDER_MAX_BACKLOG=64" in advice.lines


def test_the_backlog_is_what_can_still_be_answered_in_time() -> None:
    advice = advise([point(1, 8, 2)], objective=0.020, history=20)
    assert f"RECOMMENDER_MAX_BACKLOG={int(8 / 0.002 * 0.018)}" in advice.lines


def test_threads_that_bring_next_to_nothing_are_left_to_others() -> None:
    points = [point(1, 64, 10), point(2, 64, 9.9)]
    assert advise(points, objective=1, history=20).point == points[0]
    points = [point(1, 64, 10), point(2, 64, 6)]
    assert advise(points, objective=1, history=20).point == points[1]


def test_other_histories_do_not_count() -> None:
    points = [point(1, 64, 1, history=1), point(1, 64, 100, history=200), point(1, 1, 2, history=200)]
    assert advise(points, objective=0.010, history=200).point == points[2]


def test_an_objective_that_nothing_holds_is_answered_with_the_least_that_would_be() -> None:
    advice = advise([point(1, 1, 7), point(1, 8, 20)], objective=0.010, history=20)
    assert advice.point is None
    text = "\n".join(advice.lines)
    assert "14 ms" in text
    assert all(line.startswith("#") for line in advice.lines)


def test_thread_counts_double_up_to_all_cpus() -> None:
    assert list(profile.thread_counts(1)) == [1]
    assert list(profile.thread_counts(2)) == [1, 2]
    assert list(profile.thread_counts(6)) == [1, 2, 4, 6]
