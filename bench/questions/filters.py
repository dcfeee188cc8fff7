"""Measure the cost of filters: batches with another filter in each row, compared with batches without filters.

One engine for each kind of file, with masks from the cache. Batches take turns; a ratio is of two batches of the same
round. Answers are compared with brute force. faiss searches row by row with an `IDSelectorBitmap`, at its best number
of threads. Cold filters are evaluated over a table of ten attributes. Run: `just bench-filters`, or a part by `--files
coarse --rounds 9 --no-faiss --no-cold`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
from rich.console import Console
from rich.table import Table

from bench.facts import machine
from bench.figures import spread
from bench.questions.topk import ours
from recommender.catalogue.attributes.evaluating import evaluate
from recommender.catalogue.attributes.reading import read_table
from recommender.catalogue.attributes.syntax import parse
from recommender.domain import Model, Query
from recommender.engine.engine import OnnxEngine, open_engine
from recommender.masks import ItemMask
from recommender.settings.engine import EngineSettings

try:
    import faiss  # type: ignore[import-not-found,unused-ignore] # comes by `--with faiss-cpu`
except ImportError:
    faiss = None

K = 10
_ROUNDS_OF_FAISS = 3
FILTERS = (
    "item.price < 20.0",
    "item.stock > 0 && item.brand == 'word 7'",
    "'word 3' in item.tags",
    "item.category in ['word 1', 'word 2'] && item.new",
    "item.since > timestamp('2020-01-01T00:00:00Z') || !(item.rating < 0.5)",
)
Floats: TypeAlias = npt.NDArray[np.float32]
Masks: TypeAlias = dict[float, list[ItemMask]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1000000x64")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--files", default="plain,coarse")
    parser.add_argument("--shares", default="0.001,0.01,0.1,0.5,0.99")
    parser.add_argument("--table", choices=("normal", "uniform"), default="normal")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-faiss", action="store_true")
    parser.add_argument("--no-cold", action="store_true")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    items, dim = map(int, options.size.split("x"))
    if options.table == "uniform":
        embeddings = random.random((items, dim), dtype=np.float32)
    else:
        embeddings = random.standard_normal((items, dim), dtype=np.float32)
    users = random.integers(0, items, options.batch)
    shares = list(map(float, options.shares.split(",")))
    masks = {share: [ItemMask(random.random(items) < share) for _ in users] for share in shares}
    console = Console(width=160)
    for name, fact in machine().items():
        console.print(f"{name}: {fact}", highlight=False)
    console.print(f"{options.size}, {options.table} table, batch {options.batch}, k {K}")
    theirs = None if faiss is None or options.no_faiss else RowByRow(embeddings)
    for kind in options.files.split(","):
        console.print(of_file(kind, embeddings, users, masks, options.rounds, theirs))
    if not options.no_cold:
        console.print(cold(items))


def of_file(
    kind: str, embeddings: Floats, users: npt.NDArray[np.int64], masks: Masks, rounds: int, theirs: RowByRow | None
) -> Table:
    """Time of each kind of batch on one file's engine."""
    with tempfile.TemporaryDirectory() as folder:
        engine = opened(ours(embeddings, Path(folder), coarse=kind == "coarse"), len(embeddings), len(users))
        plain = [Query((user,), K) for user in users.tolist()]
        batches = {"no filters": plain}
        for share, own in masks.items():
            every = [query._replace(masks=(mask,)) for query, mask in zip(plain, own, strict=True)]
            batches[f"every row, {share:.1%}"] = every
            batches[f"one row, {share:.1%}"] = [every[0], *plain[1:]]
        try:
            taken = measure({name: partial(engine.rank, batch) for name, batch in batches.items()}, rounds)
            filtered = {} if theirs is None else {name: batch for name, batch in batches.items() if "every" in name}
            by_row = {name: against(theirs, engine, batch) for name, batch in filtered.items() if theirs is not None}
            right = {name: exact(engine, batch[:3], embeddings) for name, batch in batches.items()}
        finally:
            engine.close()
    columns = (f"{kind} file", "ms", "× no filters", "CPU × no filters", "faiss by row × this", "equal to brute force")
    shown = Table(*columns, title=f"median [least … most] of {rounds} rounds")
    for name, (wall, cpu) in taken.items():
        shown.add_row(
            name,
            spread((wall * 1e3).tolist()),
            spread((wall / taken["no filters"][0]).tolist(), ".2f"),
            spread((cpu / taken["no filters"][1]).tolist(), ".2f"),
            spread(by_row[name], ".1f") if name in by_row else "",
            "yes" if right[name] else "NO",
        )
    return shown


def opened(path: Path, items: int, batch: int) -> OnnxEngine:
    """The engine of a file, warmed up as a server does it."""
    model = Model("filters", "1", items, K, 1_000, None, 1e-4)
    engine = open_engine(EngineSettings(), path, lambda *_: model)
    asyncio.run(engine.warm_up(batch))
    return engine


def measure(
    runs: dict[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Seconds by the clock, and of CPU, of each run in each round; who follows whom changes."""
    random = np.random.default_rng(0)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in random.permutation(list(runs)).tolist():
            cpu, start = time.process_time(), time.perf_counter()
            runs[name]()
            if turn:
                taken[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {name: (np.array(each)[:, 0], np.array(each)[:, 1]) for name, each in taken.items()}


def exact(engine: OnnxEngine, batch: Sequence[Query], embeddings: Floats) -> bool:
    """Whether these rows get the items of brute force, except items whose scores are about equal."""
    for query, ranking in zip(batch, engine.rank(batch), strict=True):
        scores = embeddings @ embeddings[query.history[0]]
        for mask in query.masks:
            scores[~mask.holds(np.arange(len(scores)))] = -np.inf
        best = np.sort(np.partition(scores, -K)[-K:])[::-1]
        own = scores[ranking.item_ids]
        if len(own) != K or not np.allclose(own, best, rtol=1e-5) or not np.allclose(ranking.scores, best, rtol=1e-5):
            return False
    return True


class RowByRow:
    """faiss, asked row by row with a selector each."""

    def __init__(self, embeddings: Floats) -> None:
        self._embeddings = embeddings
        self._index = faiss.IndexFlatIP(embeddings.shape[1])
        self._index.add(embeddings)
        self._threads = sorted({1, faiss.omp_get_max_threads()})

    def seconds(self, batch: Sequence[Query]) -> float:
        """How long it takes for a batch, at the number of threads that is best for it."""
        taken = []
        for threads in self._threads:
            faiss.omp_set_num_threads(threads)
            start = time.perf_counter()
            for query in batch:
                (user,), (mask,) = query.history, query.masks
                selector = faiss.IDSelectorBitmap(mask.bits)
                self._index.search(self._embeddings[user : user + 1], K, params=faiss.SearchParameters(sel=selector))
            taken.append(time.perf_counter() - start)
        return min(taken)


def against(theirs: RowByRow, engine: OnnxEngine, batch: Sequence[Query]) -> list[float]:
    """Seconds of faiss × those of the engine, in rounds."""
    ratios = []
    for _ in range(_ROUNDS_OF_FAISS):
        start = time.perf_counter()
        engine.rank(batch)
        ours_took = time.perf_counter() - start
        ratios.append(theirs.seconds(batch) / ours_took)
    return ratios


def cold(items: int) -> Table:
    """Time of a filter that is not in the cache: parsed, evaluated over the table, joined and packed."""
    random = np.random.default_rng(0)
    words = np.array([f"word {number}" for number in range(5_000)])
    lengths = np.concatenate([[0], np.cumsum(random.integers(0, 5, items))]).astype(np.int32)
    columns = {
        "key": [f"item {number}" for number in range(items)],
        "price": random.random(items) * 100,
        "rating": random.random(items),
        "stock": random.integers(0, 50, items),
        "views": random.integers(0, 1_000_000, items),
        "new": random.random(items) < 0.1,
        "since": pa.array(random.integers(0, 2_000_000_000, items), pa.timestamp("s", "UTC")),
        **{name: words[random.integers(0, 5_000, items)] for name in ("brand", "category", "country")},
        "tags": pa.ListArray.from_arrays(lengths, pa.array(words[random.integers(0, 200, lengths[-1])])),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.parquet"
        pa.parquet.write_table(pa.table(columns), path)
        table = read_table(path)
    rows = random.permutation(items).astype(np.int32)

    def evaluated(text: str) -> ItemMask:
        return ItemMask(evaluate(parse(text), table, {})[rows])

    taken = measure({text: partial(evaluated, text) for text in FILTERS}, 9)
    shown = Table("cold filter", "ms", "ms of CPU", title=f"{items:,} items with ten attributes, 9 rounds")
    for text, (wall, cpu) in taken.items():
        shown.add_row(text, spread((wall * 1e3).tolist()), spread((cpu * 1e3).tolist()))
    return shown


if __name__ == "__main__":
    main()
