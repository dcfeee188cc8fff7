"""Ways of rows with masks: chosen by what they cost in the whole batch, and measured before a version serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recommender.batching.cost import Cost
from recommender.domain import Model, Query
from recommender.engine.masked.measuring import measured
from recommender.engine.masked.ways import Costs, Way, Wish, quickest_ways
from tests.support import models
from tests.support.engines import Load
from tests.support.whole_numbers import exported

ITEMS, K, BLOCK, MOST = 1_000_000, 10, 64, 256
COSTS = Costs(
    walk=Cost(5e-3, 4e-4, 4e-6), named=Cost(3e-4, 2e-5, 4e-8), looked=Cost(0.0, 1e-4, 4e-8)
)  # of a million items

numbers = st.integers(1, 100_000)
wishes = st.builds(Wish, st.none() | numbers, numbers, st.none() | st.floats(0.0, 1e5))
seconds = st.floats(0.0, 1e-2)
costs = st.builds(Costs, *[st.builds(Cost, seconds, seconds, st.floats(0.0, 1e-5))] * 3)


def wish(share: float, block: int | None = BLOCK) -> Wish:
    return Wish.of(K, share, round(share * ITEMS), most=MOST, block=block)


def way(share: float, rows: int, others: int = 0, costs: Costs = COSTS, block: int | None = BLOCK) -> Way:
    return quickest_ways([wish(share, block)] * rows, others, K, costs)[0]


def total(wishes: Sequence[Wish], ways: Sequence[Way], others: int, k: int, costs: Costs) -> float:
    """What a batch takes by these ways; infinite if a row cannot take its way."""
    walk, named, looked = costs.walk, costs.named, costs.looked
    taken, ranked, most = 0.0, others, k if others else 0
    for wish, way in zip(wishes, ways, strict=True):
        if way is Way.NAME:
            taken += named.fixed / len(wishes) + named.per_row + named.per_cell * wish.allowed
        elif way is Way.LOOK:
            taken += math.inf if wish.looked is None else looked.per_row + looked.per_cell * wish.looked
        else:
            taken += math.inf if wish.asked is None else 0.0
            ranked, most = ranked + 1, max(most, wish.asked or 0)
    walking = others + len(ways) - ways.count(Way.NAME)
    return taken + (walk.seconds(walking, ranked * most) if walking else 0.0)


def test_the_share_of_items_that_match_chooses() -> None:
    assert [way(share, rows=64) for share in (0.0, 0.001, 0.1, 0.5, 0.99, 1.0)] == [
        Way.NAME,
        Way.NAME,
        Way.LOOK,
        Way.LOOK,
        Way.ASK,
        Way.ASK,
    ]


def test_a_model_without_bounds_ranks_exactly_or_asks() -> None:
    assert [way(share, rows=64, block=None) for share in (0.001, 0.1, 0.9)] == [Way.NAME, Way.ASK, Way.ASK]
    assert way(0.02, rows=64, block=None) is Way.NAME  # it would ask for more than the model gives


def test_a_row_alone_ranks_more_items_than_walk_over_the_table() -> None:
    assert way(0.05, rows=1) is Way.NAME
    assert way(0.05, rows=1, others=63) is Way.LOOK
    assert way(0.05, rows=64) is Way.LOOK


def test_a_row_does_not_ask_for_what_all_its_mates_would_get() -> None:
    assert way(0.7, rows=64, others=0) is Way.ASK
    assert way(0.7, rows=1, others=63) is Way.LOOK


@pytest.mark.parametrize("slower", [2.0, 8.0])
def test_a_dearer_way_is_taken_less_often(slower: float) -> None:
    shares = [step / 200 for step in range(201)]

    def taken(wanted: Way, costs: Costs) -> int:
        return sum(way(share, rows=64, costs=costs) is wanted for share in shares)

    def dearer(cost: Cost) -> Cost:
        return replace(cost, per_row=cost.per_row * slower, per_cell=cost.per_cell * slower)

    assert taken(Way.NAME, replace(COSTS, named=dearer(COSTS.named))) < taken(Way.NAME, COSTS)
    assert taken(Way.ASK, replace(COSTS, walk=replace(COSTS.walk, per_cell=4e-6 * slower))) < taken(Way.ASK, COSTS)
    assert taken(Way.LOOK, replace(COSTS, looked=dearer(COSTS.looked))) < taken(Way.LOOK, COSTS)


def test_rows_fill_the_places_of_a_product_that_would_stay_empty() -> None:
    few = wish(0.004)  # which is quicker to rank exactly than to walk over the table for
    assert quickest_ways([few], 64, K, COSTS) == [Way.NAME]
    assert quickest_ways([few] * 3, 62, K, COSTS) == [Way.LOOK, Way.LOOK, Way.NAME]


@settings(max_examples=60, deadline=None)
@example([Wish(1, 1, None), Wish(1, 1, 0.0)], 0, 1, Costs(Cost(0.0), Cost(0.0), Cost(0.0)))
@given(st.lists(wishes, min_size=1, max_size=12), st.integers(0, 4), st.integers(1, 50), costs)
def test_no_batch_of_rows_that_all_go_one_way_is_quicker(wishes: list[Wish], others: int, k: int, costs: Costs) -> None:
    chosen = total(wishes, quickest_ways(wishes, others, k, costs), others, k, costs)
    # Up to seven rows more than by their costs are in the walk: their places cost nothing.
    room = 7 * costs.walk.per_row + 1e-9
    for each in Way:
        assert chosen <= total(wishes, [each] * len(wishes), others, k, costs) * (1 + 1e-9) + room


def test_every_way_is_measured_and_items_are_never_free() -> None:
    ranked: list[Sequence[Query]] = []
    found = measured(ranked.append, Model("m", "1", 5_000, K, 300, None, 0.0), 5_000, BLOCK, 16)
    assert max(len(batch) for batch in ranked) == 16
    assert {(len(query.masks), query.k) for batch in ranked for query in batch} == {(0, K), (0, 4 * K), (1, K)}
    assert found.walk.per_cell > 0
    assert found.named.per_cell > 0
    assert found.looked.per_row > 0


async def test_a_version_is_measured_before_it_serves(load: Load, tmp_path: Path) -> None:
    items = 3_000
    engine = load(exported(tmp_path / "10_model.onnx", items, coarse=False))
    supposed = engine.mask_costs
    await engine.warm_up(16)
    assert engine.mask_costs != supposed
    exact, asked = engine.filter_thresholds or (-1, -1.0)
    assert 0 <= exact <= items
    assert 0 < asked <= 1


async def test_a_model_that_ranks_no_candidates_has_nothing_to_choose(load: Load, tmp_path: Path) -> None:
    engine = load(models.batched(tmp_path / "10_model.onnx", models.table(50), k=10))
    await engine.warm_up(4)
    assert engine.filter_thresholds is None
