"""New items next to the catalogue: the engine against brute force over both together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.domain import Query, Ranking
from recommender.engine.engine import OnnxEngine
from recommender.masks import ItemMask
from recommender.new_items import Beside, Floats, NewItems
from tests.support.engines import engines
from tests.support.whole_numbers import SIZE, embeddings, exported

WAYS = {"one slab": 5_000, "8 bits": 20_003}
NEW = 40


@pytest.fixture(scope="module", params=WAYS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxEngine]:
    path = exported(
        tmp_path_factory.mktemp("model") / "10_model.onnx", WAYS[request.param], coarse=request.param == "8 bits"
    )
    with engines() as load:
        yield load(path)


def new_items(items: int, seed: int, number: int = NEW) -> NewItems:
    """Some of them score as much as many of the catalogue, some more than all."""
    random = np.random.default_rng(seed)
    vectors = random.integers(-2, 4, (number, SIZE)).astype(np.float32)
    biases = random.integers(-1, 2, number).astype(np.float32)
    return NewItems(np.arange(items, items + number), [f"new {each}" for each in range(number)], vectors, biases)


def brute_force(table: Floats, query: Query) -> Ranking:
    items = len(table)
    user = table[query.history[-1]]
    allowed = np.ones(items, np.bool_)
    if query.candidates is not None:
        allowed = np.isin(np.arange(items), query.candidates)
    for mask in query.masks:
        allowed &= mask.holds(np.arange(items))
    allowed[list(query.excluded)] = False
    ids, scores = np.flatnonzero(allowed), (table @ user)[allowed]
    if query.beside is not None:
        new, chosen = query.beside.items, query.beside.allowed
        kept = np.ones(len(new), np.bool_) if chosen is None else chosen
        ids = np.concatenate([ids, new.ids[kept]])
        scores = np.concatenate([scores, (new.vectors @ user + new.biases)[kept]])
    best = np.argsort(-scores, kind="stable")[: query.k]
    return Ranking(ids[best].tolist(), scores[best].tolist())


@st.composite
def rows(draw: st.DrawFn, items: int) -> Query:
    item = st.integers(0, items - 1)
    some = st.lists(item, max_size=20, unique=True).map(lambda ids: tuple(sorted(ids)))
    candidates = draw(st.one_of(st.none(), some))
    share = draw(st.sampled_from([None, 0.0, 0.01, 0.5, 1.0]))
    masks = () if share is None else (ItemMask(np.random.default_rng(7).random(items) < share),)
    chosen = draw(st.sampled_from([None, 0.0, 0.3]))
    allowed = None if chosen is None else np.random.default_rng(8).random(NEW) < chosen
    beside = draw(st.sampled_from([None, Beside(new_items(items, 1), allowed), Beside(new_items(items, 2), allowed)]))
    excluded = () if candidates is not None else draw(some)
    return Query((draw(item),), draw(st.integers(1, 60)), excluded, candidates, masks=masks, beside=beside)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_get_the_best_of_the_catalogue_and_of_what_is_beside_it(engine: OnnxEngine, data: st.DataObject) -> None:
    items = engine.model.items
    assert items is not None
    batch = data.draw(st.lists(rows(items), min_size=1, max_size=8))
    assert asyncio.run(engine.run(batch)) == [brute_force(embeddings(items), query) for query in batch]


def test_many_rows_and_items_are_multiplied_part_by_part(engine: OnnxEngine) -> None:
    items = engine.model.items
    assert items is not None
    beside = Beside(new_items(items, 3, 30_000))
    batch = [Query((last,), 5, beside=beside) for last in range(80)]
    assert engine.rank(batch) == [brute_force(embeddings(items), query) for query in batch]


def test_a_key_stands_for_an_id_and_back() -> None:
    found = new_items(50, 1)
    assert [found.id_of(key) for key in ("new 0", "new 39", "old")] == [50, 89, None]
    assert [found.key_of(item) for item in (50, 89, 49, 90)] == ["new 0", "new 39", None, None]
    assert np.flatnonzero(found.among([49, 51, 90, 89])).tolist() == [1, 39]
