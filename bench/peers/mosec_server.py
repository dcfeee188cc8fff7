"""The model behind mosec, as its README has it: JSON over HTTP/1.1, a Rust front, one worker process by default."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker

from bench.peers.ranker import BATCH, WAIT_MS, Ranker

WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))


class Recommend(Worker):  # type: ignore[misc]
    """One process with a session."""

    def __init__(self) -> None:
        super().__init__()
        self._ranker = Ranker()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
        """Rank for every request of a batch."""
        return self._ranker.told([each["item_ids"] for each in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Recommend, num=WORKERS, max_batch_size=BATCH, max_wait_time=round(WAIT_MS))
    server.run()
