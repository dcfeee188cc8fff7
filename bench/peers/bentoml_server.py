"""The model behind BentoML, as its page on adaptive batching has it: JSON over HTTP/1.1, one worker process.

BentoML's limit is a target latency, not a time to wait for other requests; beyond it, it answers 503.
"""

from __future__ import annotations

import bentoml

from bench.peers.ranker import BATCH, WAIT_MS, Ranker


@bentoml.service(workers=1)
class Recommender:
    """One process with a session."""

    def __init__(self) -> None:
        self._ranker = Ranker()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=round(WAIT_MS))  # type: ignore[untyped-decorator]
    def recommend(self, histories: list[list[int]]) -> list[dict[str, list[float]]]:
        """Rank for every request of a batch."""
        return self._ranker.told(histories)
