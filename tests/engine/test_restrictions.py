"""Exclusions and candidates, row by row: the engine against brute force, for mixed batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.domain import Query
from recommender.engine.contract import Contract
from recommender.engine.engine import OnnxEngine
from recommender.engine.provider import CPU
from recommender.export.artifact import write_model
from recommender.export.graph import build_graph
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack
from recommender.models.artifact import open_artifact
from recommender.models.loader import open_model
from recommender.settings.engine import Device, EngineSettings

SIZE, MAX_K = 4, 60
_LOOKED_UP = 1 << 18


def embeddings(items: int) -> np.ndarray:
    """Whole numbers, so that a ranking has one right answer: ties and all."""
    return np.random.default_rng(items).integers(-2, 3, (items, SIZE)).astype(np.float32)


SIZES = {"all scores": 70, "one slab": 4_100, "many slabs": 70_000}
DEVICES: tuple[tuple[Device, tuple[pytest.MarkDecorator, ...]], ...] = (("cpu", ()), ("cuda", (pytest.mark.cuda,)))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((items, device), id=name if device == "cpu" else f"{name} on {device}", marks=marks)
        for name, items in SIZES.items()
        for device, marks in DEVICES
    ],
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxEngine]:
    items, device = request.param
    layout = Layout(items, SIZE)

    def last_item(g: Nodes) -> str:
        last = g.op("Sub", "history_length", g.int64(1))
        item = g.op("GatherElements", "user_history", g.op("Unsqueeze", last, g.int64(1)), axis=1)
        return g.op("Gather", TABLE, g.op("Squeeze", item, g.int64(1)), axis=0)

    told = {"items": str(items), "default_k": "10", "max_k": str(MAX_K)}
    model = build_graph(last_item, layout, largest=2.0, metadata=told)
    path = tmp_path_factory.mktemp("model") / "10_model.onnx"
    write_model(model, pack(embeddings(items), None, layout), path, 1 << 30)
    engine = open_model(EngineSettings(device=device), open_artifact(path))
    yield engine
    engine.close()


def queries(items: int) -> st.SearchStrategy[list[Query]]:
    """Batches of rows that restrict nothing, exclude items, or rank candidates: near each other, so that they meet."""
    item = st.one_of(st.integers(0, 69), st.integers(0, items - 1), st.integers(max(items - 70, 0), items - 1))
    some = st.lists(item, max_size=80, unique=True)

    def query(last: int, k: int, excluded: list[int], candidates: list[int] | None) -> Query:
        if candidates is None:
            return Query((last,), k, tuple(excluded))
        return Query((last,), k, (), tuple(sorted(set(candidates) - set(excluded))))

    row = st.builds(query, item, st.integers(1, MAX_K), st.one_of(st.just([]), some), st.one_of(st.none(), some))
    return st.lists(row, min_size=1, max_size=60)


def brute_force(table: np.ndarray, query: Query) -> list[int]:
    scores = table @ table[query.history[-1]]
    allowed = np.ones(len(table), bool)
    if query.candidates is not None:
        allowed[:] = False
        allowed[list(query.candidates)] = True
    allowed[list(query.excluded)] = False
    order = np.argsort(-scores, kind="stable")
    return [int(item) for item in order[allowed[order]][: query.k]]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_row_gets_the_best_of_what_it_may_have(engine: OnnxEngine, data: st.DataObject) -> None:
    items = engine.model.items
    assert items is not None
    table = embeddings(items)
    batch = data.draw(queries(items))
    rankings = asyncio.run(engine.run(batch))
    for query, ranking in zip(batch, rankings, strict=True):
        right = brute_force(table, query)
        user = table[query.history[-1]]
        assert ranking.scores == (table[right] @ user).tolist()
        if engine.provider == CPU:
            assert ranking.item_ids == right
        else:  # CUDA's TopK orders equal scores in any way.
            allowed = brute_force(table, query._replace(k=items))
            assert set(ranking.item_ids) <= set(allowed)
            assert len(set(ranking.item_ids)) == len(right)
            assert ranking.scores == (table[ranking.item_ids] @ user).tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 30_000)), min_size=1, max_size=40))
def test_candidates_of_one_run_never_take_more_memory_than_the_bound(lengths: list[int | None]) -> None:
    batch = [Query((0,), 1, (), None if length is None else tuple(range(length))) for length in lengths]
    contract = Contract(frozenset({"candidates", "candidates_length"}), frozenset(), batched=True)
    runs = contract.runs(batch)
    assert sorted(place for run in runs for place in run) == list(range(len(batch)))
    for run in runs:
        own = [lengths[place] for place in run]
        assert (None in own) == (own == [None] * len(own))
        assert len(run) * max(length or 0 for length in own) <= _LOOKED_UP or len(run) == 1
