"""Scores in 8 bits: used for the batches that they make quicker, and the answer is the same in every way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recommender.domain import Query
from recommender.engine.coarse import Span, quickest, quickest_span
from recommender.export.artifact import write_model
from recommender.export.graph import build_graph
from recommender.export.head.codes import CODES, Codes
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack
from tests.support import models
from tests.support.engines import Load

ITEMS, SIZE = 20_003, 16
EVERY = int(np.iinfo(np.int64).max)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    embeddings = np.random.default_rng(0).standard_normal((ITEMS, SIZE), dtype=np.float32)
    layout = Layout(ITEMS, SIZE)
    table = pack(embeddings, None, layout)
    codes = Codes.of(table, layout)

    def first_item(g: Nodes) -> str:
        return g.op("Gather", TABLE, g.op("Gather", "user_history", g.constant(np.array(0)), axis=1), axis=0)

    told = {"items": str(ITEMS), "default_k": "10", "max_k": "100"}
    graph = build_graph(first_item, layout, largest=float(np.abs(table).max()), codes=codes, metadata=told)
    path = tmp_path_factory.mktemp("coarse") / "10_model.onnx"
    write_model(graph, table, path, 1 << 30, {CODES: codes.codes})
    return path


@pytest.mark.parametrize(
    ("quicker", "most", "span"),
    [
        ({1, 4, 16, 64}, 64, (1, EVERY)),
        (set(), 64, (1, 0)),
        ({16, 64}, 64, (16, EVERY)),
        ({1, 4}, 64, (1, 15)),
        ({4, 16}, 100, (4, 63)),
        ({1}, 1, (1, EVERY)),
        ({4, 64}, 64, (4, 15)),
    ],
)
def test_eight_bits_are_used_where_they_are_quicker(quicker: set[int], most: int, span: tuple[int, int]) -> None:
    def seconds(rows: int, ways: Sequence[Span]) -> list[float]:
        eight_bits = [rows <= int(way[1]) for way in ways]
        return [1.0 if each == (rows in quicker) else 2.0 for each in eight_bits]

    assert tuple(quickest_span(seconds, most)) == span


def test_eight_bits_are_used_where_they_take_hardly_longer() -> None:
    by_rows = {1: 1.04, 4: 1.06}

    def seconds(rows: int, ways: Sequence[Span]) -> list[float]:
        return [by_rows[rows] if rows <= int(way[1]) else 1.0 for way in ways]

    assert tuple(quickest_span(seconds, 4)) == (1, 3)


def test_ways_are_timed_in_turns() -> None:
    tried: list[str] = []

    seconds = quickest(tried.append, "ab")

    assert len(seconds) == 2
    assert len(tried) >= 4  # once to allocate, and once at least to be timed
    assert tried == [*"ab"] * (len(tried) // 2)


@pytest.mark.parametrize("bucketed", [False, True])
async def test_the_answer_is_the_same_whatever_was_measured(load: Load, coarse: Path, *, bucketed: bool) -> None:
    engine = load(coarse, bucketed=bucketed)
    assert engine.coarse_rows == (1, EVERY)
    queries = [Query((item,), 10) for item in range(9)]
    before = await engine.run(queries)
    await engine.warm_up(9)
    assert engine.coarse_rows is not None
    for one, other in zip(before, await engine.run(queries), strict=True):
        assert one.equals(other, 1e-4)
    restricted = [
        query._replace(excluded=(ranking.item_ids[0],)) for query, ranking in zip(queries, before, strict=True)
    ]
    for one, other in zip(before, await engine.run(restricted), strict=True):
        assert other.item_ids[:9] == one.item_ids[1:]


async def test_a_model_without_a_table_in_8_bits_has_nothing_to_choose(load: Load, tmp_path: Path) -> None:

    assert load(models.batched(tmp_path / "1_model.onnx", models.table(100, 8))).coarse_rows is None
