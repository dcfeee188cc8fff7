"""The batcher and a real engine, with full batches that are staged and unstaged while its thread takes them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Query, Ranking
from recommender.errors import BacklogFullError, DeadlineError, RecommenderError
from recommender.settings.engine import Device
from tests.support import models
from tests.support.engines import Load

ITEMS = 2_000
CALLERS, CALLS = 14, 120


class Callers:
    """Callers of one query or of many, of which some have little time and some leave; returns the ends of their
    queries."""

    def __init__(self, batcher: Batcher, rankings: dict[Query, Ranking], seed: int) -> None:
        self.batcher = batcher
        self.rankings = rankings
        self.drawn = random.Random(seed)
        self.submitted = 0
        self.outcomes: Counter[str] = Counter()

    async def come(self) -> None:
        for _ in range(CALLS):
            call = asyncio.create_task(self._call())
            if self.drawn.random() < 0.6:
                for _ in range(self.drawn.randrange(60)):
                    await asyncio.sleep(0)
                call.cancel()
            await asyncio.wait({call})
            if call.cancelled():
                self.outcomes["left"] += 1
            else:
                call.result()

    async def _call(self) -> None:
        deadline = self.drawn.choice([math.inf, math.inf, time.monotonic() + self.drawn.random() * 0.02])
        asked = self.drawn.choices(list(self.rankings), k=self.drawn.randrange(1, 8))
        self.submitted += len(asked)
        if len(asked) > 1:
            outcomes = await self.batcher.submit_many(asked, deadline=deadline)
        else:
            try:
                outcomes = [await self.batcher.submit(asked[0], deadline=deadline)]
            except RecommenderError as error:
                outcomes = [error]
        for query, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, Ranking):
                assert outcome.equals(self.rankings[query], 1e-5)
            else:
                assert isinstance(outcome, DeadlineError | BacklogFullError)
            self.outcomes[type(outcome).__name__] += 1


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
async def test_whoever_leaves_or_is_late_everybody_else_has_the_right_answer_once(
    load: Load, tmp_path: Path, slots: int, device: Device
) -> None:
    told = {"recommender.items": str(ITEMS)}
    path = models.batched(tmp_path / "10_model.onnx", models.table(ITEMS, 16), metadata=told)
    engine = load(path, slots=slots, device=device)
    drawn = random.Random(slots)
    asked = [Query(tuple(drawn.choices(range(ITEMS), k=drawn.randrange(1, 30))), 10) for _ in range(100)]
    rankings = {query: (await engine.run([query]))[0] for query in asked}
    batcher = Batcher(
        engine, max_batch_size=8, max_backlog=200, engine_timeout=30, cost=Cost(1e-4, 1e-5), slots=slots, max_wait=0.002
    )
    callers = Callers(batcher, rankings, slots)
    await asyncio.gather(*(callers.come() for _ in range(CALLERS)))
    await batcher.drain()

    seen = batcher.statistics()
    assert (seen.waiting, seen.running, seen.failed, seen.ended) == (0, 0, 0, callers.submitted)
    assert callers.outcomes["left"] > 0
    assert callers.outcomes["Ranking"] > 0
    await batcher.close()
