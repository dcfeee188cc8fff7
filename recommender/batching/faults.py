"""A batch of which some rows have no answer: those rows fail, and the others have theirs."""

from __future__ import annotations

from collections.abc import Sequence

from recommender.domain import Ranking
from recommender.errors import EngineError


class FaultyRowsError(EngineError):
    """The model ran, and what it gave for some rows is no answer; `outcomes` has one for each row, in their order."""

    def __init__(self, outcomes: Sequence[Ranking | EngineError]) -> None:
        faults = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
        super().__init__(f"{len(faults)} of {len(outcomes)} rows have no answer: {faults[0]}")
        self.outcomes = outcomes


def whole(outcomes: Sequence[Ranking | EngineError]) -> list[Ranking]:
    """The rankings of a batch. Raises FaultyRowsError if a row has none."""
    rankings = [outcome for outcome in outcomes if isinstance(outcome, Ranking)]
    if len(rankings) < len(outcomes):
        raise FaultyRowsError(outcomes)
    return rankings
