"""The estimator: learned at warm-up, kept current, and never able to lock the door."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recommender.batching.backlog import Backlog
from recommender.batching.cost import Cost, Estimator, Observation
from recommender.domain import Query
from recommender.errors import DeadlineError

COST = Cost(0.010, 0.001, 0.0001)
RUNS = st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(0.0, 5.0)), max_size=40)
QUERY = Query((1, 2, 3), 3)


def test_a_fit_finds_the_cost_that_made_the_observations() -> None:
    shapes = [(1, 1), (1, 32), (16, 16), (16, 512), (64, 64), (64, 2048)]
    found = Cost.fit([Observation(rows, cells, COST.seconds(rows, cells)) for rows, cells in shapes])
    assert found.seconds(32, 500) == pytest.approx(COST.seconds(32, 500))
    assert (found.fixed, found.per_row, found.per_cell) == pytest.approx((0.010, 0.001, 0.0001))


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 200), st.floats(0.0, 10.0)), min_size=1, max_size=12))
def test_no_term_of_a_fit_is_negative(seen: list[tuple[int, int, float]]) -> None:
    cost = Cost.fit([Observation(rows, rows * length, seconds) for rows, length, seconds in seen])
    assert min(cost.fixed, cost.per_row, cost.per_cell) >= 0


@given(RUNS)
def test_without_evidence_an_estimate_goes_back_to_the_warm_up(runs: list[tuple[float, float]]) -> None:
    estimator, now = Estimator(COST), 0.0
    for seconds, pause in runs:
        now += pause
        estimator.observe(1, 3, seconds, now)
    distances = [abs(math.log(estimator.factor(now + later))) for later in (0, 1, 2, 5, 20)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


@given(RUNS)
def test_an_idle_engine_takes_everyone_and_a_busy_one_a_probe_a_second_whatever_was_observed(
    runs: list[tuple[float, float]],
) -> None:
    estimator = Estimator(COST)
    backlog: Backlog[None] = Backlog(4, 16, estimator)
    now = 0.0
    for seconds, pause in runs:
        now += pause
        estimator.observe(1, 3, seconds, now)
    backlog.admit(QUERY, now + 1e-6, None, now)  # idle: taken, however short its time is
    assert backlog.next_batch(now) is not None
    refused_since = now
    while True:
        try:
            backlog.admit(QUERY, now + 1e-6, None, now)
        except DeadlineError:
            assert now - refused_since < 1.0
            now += 0.1
        else:
            break


def test_an_estimate_follows_a_machine_that_has_become_slower() -> None:
    estimator = Estimator(COST)
    for number in range(50):
        estimator.observe(4, 12, 3 * COST.seconds(4, 12), number * 0.01)
    assert estimator.seconds(4, 12, 0.5) == pytest.approx(3 * COST.seconds(4, 12), rel=0.05)
