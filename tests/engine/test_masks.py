"""Masks, row by row: the engine against brute force, for every share of allowed items."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.batching.faults import FaultyRowsError
from recommender.domain import Query, Ranking
from recommender.engine.engine import OnnxEngine
from recommender.engine.masked.measuring import NAMING
from recommender.engine.masked.ways import Costs
from recommender.errors import EngineError
from recommender.masks import ItemMask
from tests.support import models
from tests.support.engines import Load, engines
from tests.support.whole_numbers import embeddings, exported

WAYS = {"all scores": 70, "one slab": 5_000, "many slabs": 70_000, "8 bits": 20_003}


COSTS = (
    Costs.supposed(1_000_000),
    NAMING,
    Costs(walk=Cost(0.0), named=Cost(1.0, 1.0), looked=Cost(1.0, 1.0)),
    Costs(walk=Cost(0.0, 0.0, 1.0), named=Cost(1.0, 1.0), looked=Cost(0.0)),
)
"""Costs by which rows take the way that suits their masks, or all that can rank exactly, ask for more, or look."""


@pytest.fixture(scope="module", params=WAYS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxEngine]:
    path = tmp_path_factory.mktemp("model") / "10_model.onnx"
    exported(path, WAYS[request.param], coarse="8 bits" in request.param)
    with engines() as load:
        yield load(path)


@pytest.fixture(params=COSTS, ids=["suiting", "exactly", "asking", "looking"])
def forced(request: pytest.FixtureRequest, engine: OnnxEngine) -> OnnxEngine:
    """An engine whose rows with masks all take one way, if they can."""
    engine.mask_costs = request.param
    return engine


def allowed_at(share: float, seed: int, items: int) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(seed).random(items) < share


@st.composite
def batches(draw: st.DrawFn, items: int) -> list[Query]:
    """Rows with no, one or two masks, some of them shared, some with exclusions or candidates."""
    share = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.99, 1.0])
    pool = [ItemMask(allowed_at(draw(share), draw(st.integers(0, 9)), items)) for _ in range(3)]
    item = st.integers(0, items - 1)
    some = st.lists(item, max_size=40, unique=True).map(lambda ids: tuple(sorted(ids)))
    row = st.builds(
        lambda last, k, masks, excluded, candidates: Query(
            (last,), k, () if candidates else excluded, candidates or None, masks=tuple(masks)
        ),
        item,
        st.integers(1, min(items, 40)),
        st.lists(st.sampled_from(pool), max_size=2),
        some,
        st.one_of(st.just(()), some),
    )
    return draw(st.lists(row, min_size=1, max_size=8))


def brute_force(table: np.ndarray, query: Query) -> Ranking:
    scores = table @ table[query.history[-1]]
    allowed = np.ones(len(table), np.bool_)
    if query.candidates is not None:
        allowed = np.isin(np.arange(len(table)), query.candidates)
    for mask in query.masks:
        allowed &= mask.holds(np.arange(len(table)))
    allowed[list(query.excluded)] = False
    ids = np.flatnonzero(allowed)
    best = ids[np.argsort(-scores[ids], kind="stable")][: query.k]
    return Ranking(best.tolist(), scores[best].tolist())


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_row_gets_the_best_of_what_its_masks_allow(engine: OnnxEngine, data: st.DataObject) -> None:
    items = engine.model.items
    assert items is not None
    batch = data.draw(batches(items))
    engine.mask_costs = data.draw(st.sampled_from(COSTS))
    table = embeddings(items)
    assert asyncio.run(engine.run(batch)) == [brute_force(table, query) for query in batch]


def test_a_row_whose_best_items_are_not_allowed_is_not_short(forced: OnnxEngine) -> None:
    engine, items = forced, forced.model.items
    assert items is not None
    table = embeddings(items)
    far = [Query((last,), 10, masks=(ItemMask(table @ table[last] < 0),)) for last in range(5)]
    batch = [*far, Query((7,), 10), far[0]._replace(k=35)]
    assert asyncio.run(engine.run(batch)) == [brute_force(table, query) for query in batch]


async def test_rows_with_and_without_masks_share_a_batch(engine: OnnxEngine) -> None:
    items = engine.model.items
    assert items is not None
    table = embeddings(items)
    batching = Batcher(engine, max_batch_size=16, max_backlog=100, engine_timeout=30, cost=Cost(0.001))
    rows = [Query((last,), 5, masks=(ItemMask(allowed_at(0.5, last, items)),) * (last % 2)) for last in range(16)]
    answers = await asyncio.gather(*map(batching.submit, rows))
    assert batching.statistics().batches == {16: 1}
    assert answers == [brute_force(table, query) for query in rows]
    await batching.close()


@pytest.mark.parametrize("k", [None, 30])
def test_a_model_that_ranks_no_candidates_answers_from_what_it_gives(load: Load, tmp_path: Path, k: int | None) -> None:
    table = models.table(200)
    told = {"recommender.items": "200", "recommender.default_k": str(k or 10), "recommender.max_k": "30"}
    engine = load(models.batched(tmp_path / "m.onnx", table, k=k, metadata=told))
    odd = ItemMask(np.arange(200) % 2 == 1)
    right, _ = models.brute_force(table, [3], 30)
    (ranking,) = engine.rank([Query((3,), 5, masks=(odd,))])
    assert ranking.item_ids == [item for item in right if item % 2][:5]
    with pytest.raises(FaultyRowsError, match="too few of the 30 items"):
        engine.rank([Query((3,), 5, masks=(ItemMask.without(200, right),))])


def test_a_model_that_ranks_no_candidates_may_give_all_that_it_has(load: Load, tmp_path: Path) -> None:
    table = models.table(500)
    engine = load(models.write_model(tmp_path / "m.onnx", table))
    right, _ = models.brute_force(table, [3], 500)
    (ranking,) = engine.rank([Query((3,), 5, masks=(ItemMask.without(500, right[:490]),))])
    assert ranking.item_ids == right[490:495]
    (short,) = engine.rank([Query((3,), 500, masks=(ItemMask.without(500, right[:490]),))])
    assert short.item_ids == right[490:]


def test_a_model_of_the_older_form_answers_from_what_it_gives(load: Load, tmp_path: Path) -> None:
    table = models.table(200)
    engine = load(models.write_older_model(tmp_path / "20_model.onnx", table, 20))
    right, _ = models.brute_force(table, [3], 20)
    (ranking,) = engine.rank([Query((3,), 5, masks=(ItemMask.without(200, right[:4]),))])
    assert ranking.item_ids == right[4:9]
    with pytest.raises(EngineError, match="too few of the 20 items"):
        engine.rank([Query((3,), 17, masks=(ItemMask.without(200, right[:4]),))])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 1.0])
def test_a_mask_tells_what_it_allows(share: float) -> None:
    allowed = allowed_at(share, 1, 1_001)
    mask = ItemMask(allowed)
    assert (mask.items, mask.count) == (1_001, allowed.sum())
    assert mask.ids().tolist() == np.flatnonzero(allowed).tolist()
    assert mask.holds(np.arange(1_100)).tolist() == [*allowed.tolist(), *[False] * 99]


def test_a_mask_without_items_ignores_those_that_are_none() -> None:
    assert ItemMask.without(4, [1, 3, 9, -1]).ids().tolist() == [0, 2]
    assert ItemMask.without(0, [1]).holds(np.arange(2)).tolist() == [False, False]


@pytest.mark.parametrize("size", [64, 40, 24])
@pytest.mark.parametrize("items", [960, 1_001])
def test_a_mask_counts_what_it_allows_of_each_block(items: int, size: int) -> None:
    allowed = allowed_at(0.3, 1, items)
    blocks = range(0, items, size)
    assert ItemMask(allowed).counts(size).tolist() == [allowed[start : start + size].sum() for start in blocks]


def test_masks_may_be_of_another_size_than_the_catalogue(engine: OnnxEngine) -> None:
    items = engine.model.items
    assert items is not None
    masks = [ItemMask(allowed_at(0.4, size, size)) for size in (items // 3, items + 777)]
    batch = [Query((5,), 10, masks=(mask,)) for mask in masks] + [Query((5,), 10, masks=tuple(masks))]
    assert asyncio.run(engine.run(batch)) == [brute_force(embeddings(items), query) for query in batch]


def test_many_candidates_are_ranked_exactly_whatever_others_name(engine: OnnxEngine) -> None:
    items = engine.model.items
    assert items is not None
    table = embeddings(items)
    batch = [Query((row,), 10, candidates=tuple(range(row, items, row + 2))) for row in range(6)]
    batch += [Query((9,), 30, candidates=(4,)), Query((9,), 3, candidates=tuple(np.flatnonzero(table @ table[9] < 0)))]
    assert asyncio.run(engine.run(batch)) == [brute_force(table, query) for query in batch]
