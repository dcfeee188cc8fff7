"""What scenarios hold a server to is found from what happened."""

from __future__ import annotations

import numpy as np
import pytest

from bench.load.etude import SHOPS
from bench.load.plan import LOST, Outcomes, Phase, Plan
from bench.load.run import Run
from bench.load.scenarios import SCENARIOS, within


def ramp(latency: float, slow_from: float) -> Run:
    """A ramp from 0 to 1000/s in 10 s; requests due from `slow_from` on take a second."""
    due = np.sqrt(np.arange(5000) / 5000) * 10
    done = due + np.where(due < slow_from, latency, 1.0)
    zeros = np.zeros(len(due), np.int64)
    return Run(Plan("", (Phase(10.0, 0.0, 1000.0),)), Outcomes(due, due, done, zeros, zeros))


def test_the_highest_rate_within_an_objective_is_that_of_the_last_second_that_met_it() -> None:
    assert within(ramp(0.01, slow_from=6.0), 50) == pytest.approx(550, rel=0.05)
    assert within(ramp(0.01, slow_from=99.0), 50) == pytest.approx(950, rel=0.05)
    assert within(ramp(0.1, slow_from=99.0), 50) == 0


def test_a_request_that_failed_counts_as_never_answered() -> None:
    due = np.arange(100) / 10
    status = np.zeros(100, np.int64)
    status[:2] = LOST
    done = np.where(status == LOST, np.nan, due + 0.001)
    kinds = np.zeros(100, np.int64)
    whole = Run(Plan("", (Phase(10.0, 10.0, 10.0),)), Outcomes(due, due, done, status, kinds)).whole()

    assert whole.failed == 2
    assert whole.quantile(0.99) == pytest.approx(0.001)
    assert whole.quantile_of_all(0.98) == pytest.approx(0.001)
    assert whole.quantile_of_all(0.99) == np.inf


def test_every_scenario_says_what_must_hold() -> None:
    assert all(scenario.__doc__ for scenario in SCENARIOS.values())


def test_etudes_sizes_follow_its_rule() -> None:
    assert [shop.dim for shop in SHOPS.values()] == [16, 32, 32, 64, 128]
