"""Estimates of how long a run takes, learned at warm-up and kept current.

A run takes about `fixed + per_row · rows + per_cell · cells`. Cells are rows × the longest history among them, padding
included. Selection grows with rows, reading histories with cells. The three numbers are fitted once, at warm-up.
Afterwards one factor follows the speed of the machine. Without fresh evidence it goes back to 1, so that a stall
is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WEIGHT = 0.2
"""Share of one observation in the factor: about the last ten runs decide."""
_HALF_LIFE = 1.0
"""Seconds without an observation after which half of the factor (on a log scale) is forgotten."""
_EXTREME = math.log(1e4)
_LEAST_SECONDS = 1e-7


@dataclass(frozen=True, slots=True)
class Observation:
    """One run: its rows, its cells (rows × longest history), and its duration in seconds."""

    rows: int
    cells: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that a run takes at warm-up: `fixed`, `per_row` and `per_cell`, none negative."""

    fixed: float
    per_row: float = 0.0
    per_cell: float = 0.0

    def seconds(self, rows: int, cells: float) -> float:
        """The expected duration of a run of `rows` rows and `cells` padded cells."""
        return self.fixed + self.per_row * rows + self.per_cell * cells

    @property
    def cells_worth_a_run(self) -> float:
        """Number of padded cells that take as long as starting another run; infinite if cells cost nothing."""
        return self.fixed / self.per_cell if self.per_cell > 0 else math.inf

    @classmethod
    def fit(cls, observations: Sequence[Observation]) -> Cost:
        """Fit a non-negative cost to the observations by least squares on relative errors.

        A term that would come out negative is left out, and the rest is fitted again. Raises ValueError without
        observations.
        """
        if not observations:
            raise ValueError("a cost is fitted to at least one observation")
        seconds = np.array([max(seen.seconds, _LEAST_SECONDS) for seen in observations])
        terms = np.array([[1.0, seen.rows, seen.cells] for seen in observations]) / seconds[:, None]
        kept = [0, 1, 2]
        while True:
            solution = np.linalg.lstsq(terms[:, kept], np.ones(len(seconds)), rcond=None)[0]
            if (solution >= 0).all():
                break
            del kept[int(solution.argmin())]
        found = dict(zip(kept, solution.tolist(), strict=True))
        return cls(found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0))


class Estimator:
    """`cost` as at warm-up, times the factor by which recent runs differ from it."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self._log_factor = 0.0
        self._updated = -math.inf

    def seconds(self, rows: int, cells: float, now: float) -> float:
        """The expected duration of a run that starts about `now`."""
        return self.cost.seconds(rows, cells) * self.factor(now)

    def most_seconds(self, rows: int, cells: float, now: float) -> float:
        """The longest that a run of that size is expected to take, from `now` until the next observation."""
        return self.cost.seconds(rows, cells) * max(self.factor(now), 1.0)

    def factor(self, now: float) -> float:
        """Duration of a run relative to warm-up; 1 if nothing was observed for long."""
        return math.exp(self._faded(now))

    def observe(self, rows: int, cells: int, seconds: float, now: float) -> None:
        """Learn from a run that ended `now`."""
        expected = max(self.cost.seconds(rows, cells), _LEAST_SECONDS)
        seen = math.log(max(seconds, _LEAST_SECONDS) / expected)
        seen = min(max(seen, -_EXTREME), _EXTREME)
        self._log_factor = (1 - _WEIGHT) * self._faded(now) + _WEIGHT * seen
        self._updated = now

    def _faded(self, now: float) -> float:
        if self._log_factor == 0.0:
            return 0.0
        return self._log_factor * math.pow(0.5, max(now - self._updated, 0.0) / _HALF_LIFE)
