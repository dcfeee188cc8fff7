"""Where the microseconds of a `Recommend` call go, stage by stage, without gRPC.

`just bench stages`: each stage is timed by itself on the reference model, 20 items, batches of `--rows`, in
rounds; the least of the rounds is shown beside the median, as these machines are shared. In a server a stage costs
two to three times as much: between two calls gRPC's own code has the caches. So this says which stage to look at, and
`just bench-overhead` what a call costs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench.facts import ROOT
from recommender.api.messages import decoded
from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Query, Ranking
from recommender.edges.calls import Calls
from recommender.models.artifact import open_artifact
from recommender.models.loader import open_model
from recommender.observability.log import set_up_logging
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.settings.engine import EngineSettings

HISTORY = tuple(range(100, 2100, 100))
RANKING = Ranking(list(range(10)), [1.5] * 10)
METADATA = (("user-agent", "h2load"), ("te", "trailers"))


class Instant:
    """An engine that has the answer already."""

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """The same for all stages."""
        return [RANKING] * len(queries)

    def stage(self, _: Sequence[Query]) -> None:
        """Nothing is ready before its turn."""

    def terminate(self) -> None:
        """Nothing runs."""


async def times(stage: Callable[[], Awaitable[None]], rows: int, rounds: int) -> list[float]:
    """Microseconds a row, of each round of some milliseconds."""
    seen = []
    for _ in range(rounds):
        started, turns = time.perf_counter(), 0
        while time.perf_counter() - started < 0.02:
            await stage()
            turns += 1
        seen.append((time.perf_counter() - started) / turns / rows * 1e6)
    return seen


async def main() -> None:  # noqa: C901 (nine stages, side by side)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--rows", type=int, default=16)
    arguments = parser.parse_args()
    rows: int = arguments.rows
    set_up_logging("info", "json")
    engine = open_model(EngineSettings(device="cpu"), open_artifact(ROOT / "weights" / "10_model.onnx"))
    await engine.warm_up(rows)
    contract = engine.contract
    queries = [Query(tuple(item + row for item in HISTORY), 10) for row in range(rows)]
    feed = contract.pack(queries)
    rankings = list(await engine.run(queries))
    outputs = (
        np.array([each.item_ids for each in rankings], np.int64),
        np.array([each.scores for each in rankings], np.float32),
    )
    message = api.RecommendRequest(item_ids=HISTORY).SerializeToString()
    batcher = Batcher(Instant(), max_batch_size=rows, max_backlog=1024, engine_timeout=30, cost=Cost(1e-4, 1e-5))
    rpcs = Calls()

    async def note() -> None:
        for _ in queries:
            rpcs.begin("recommend_api.v1.RecommenderService/Recommend", METADATA).end(0)

    async def decode() -> None:
        for _ in queries:
            Query(tuple(decoded(api.RecommendRequest, message).item_ids), 10)

    async def submit() -> None:
        await asyncio.gather(*(batcher.submit(query, deadline=time.monotonic() + 1) for query in queries))

    async def pack() -> None:
        contract.pack(queries)

    async def run() -> None:
        await engine.run(queries)

    async def rank() -> None:
        engine.rank(queries)

    async def session() -> None:
        engine.run_feed(feed, 10)

    async def unpack() -> None:
        contract.unpack(outputs, queries)

    async def encode() -> None:
        for ranking in rankings:
            api.RecommendResponse(
                item_ids=ranking.item_ids, scores=ranking.scores, model_version="reference@1", request_id="0" * 16
            ).SerializeToString()

    table = Table("stage", "µs a call, least", "median", title=f"{rows} calls a batch", title_justify="left")
    for name, stage in {
        "note the call: id, duration, metrics": note,
        "decode the message, read its ids": decode,
        "submit, wait, fan out (tasks included)": submit,
        "pack": pack,
        "run, with pack, unpack and both thread switches": run,
        "the same without the thread switches": rank,
        "ONNX Runtime's part of it": session,
        "unpack": unpack,
        "build the reply, encode it": encode,
    }.items():
        seen = await times(stage, rows, arguments.rounds)
        table.add_row(name, f"{min(seen):.2f}", f"{statistics.median(seen):.2f}")
    Console().print(table)
    await batcher.close()
    engine.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
