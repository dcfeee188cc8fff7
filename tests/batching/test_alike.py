"""Short histories are not padded to long ones if that costs much, and no caller starves."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from recommender.batching.backlog import Backlog
from recommender.batching.batches import Batch, CloseReason
from recommender.batching.cost import Cost, Estimator
from recommender.domain import Query

COST = Cost(fixed=0.001, per_row=0.0001, per_cell=0.0001)
"""A run is worth ten cells."""


def waiting(*lengths: int, cost: Cost = COST, rows: int = 64) -> Backlog[int]:
    backlog: Backlog[int] = Backlog(rows, 1000, Estimator(cost))
    come(backlog, *lengths)
    return backlog


def come(backlog: Backlog[int], *lengths: int) -> None:
    for length in lengths:
        backlog.admit(Query(tuple(range(length)), 3), math.inf, length, 0.0)


def take(backlog: Backlog[int], now: float = 0.0) -> Batch[int]:
    batch = backlog.next_batch(now)
    assert batch is not None
    backlog.finish(batch, now, learn=False)
    return batch


def lengths(batch: Batch[int]) -> list[int]:
    return [waiter.payload for waiter in batch.waiters]


def test_short_and_long_histories_are_run_apart_the_oldest_first() -> None:
    backlog = waiting(2, 200, 3, 190, 2)
    first, second = take(backlog), take(backlog)

    assert (lengths(first), first.closed) == ([2, 3, 2], CloseReason.ALIKE)
    assert (lengths(second), second.closed) == ([200, 190], CloseReason.DRAINED)
    assert len(backlog) == 0


def test_a_long_history_that_came_first_goes_first() -> None:
    backlog = waiting(200, 2, 3, 190, 2)

    assert [lengths(take(backlog)) for _ in range(2)] == [[200, 190], [2, 3, 2]]


def test_callers_passed_over_are_in_the_next_batch_whoever_else_has_come() -> None:
    backlog = waiting(2, 200, 2, 100)
    assert lengths(take(backlog)) == [2, 2]
    come(backlog, 2, 2, 2, 190)

    assert lengths(take(backlog)) == [200, 100, 190]
    assert lengths(take(backlog)) == [2, 2, 2]


def test_a_full_batch_is_looked_at_and_nobody_behind_it() -> None:
    backlog = waiting(2, 200, 2, 200, 2, 2, rows=4)

    assert lengths(take(backlog)) == [2, 2]
    assert lengths(take(backlog)) == [200, 200]
    assert lengths(take(backlog)) == [2, 2]


def test_where_padding_costs_little_all_share_a_batch() -> None:
    assert lengths(take(waiting(2, 4, 3, 5, 2))) == [2, 4, 3, 5, 2]
    assert lengths(take(waiting(2, 200, 3, cost=Cost(0.001, 0.0001)))) == [2, 200, 3]
    assert lengths(take(waiting(2, 200, 3, cost=Cost(1.0, 0.0001, 0.0001)))) == [2, 200, 3]


@given(
    arrivals=st.lists(st.lists(st.integers(1, 50), max_size=6), max_size=12),
    rows=st.integers(1, 8),
    cell=st.sampled_from([0.0, 1e-5, 1e-4, 1e-2]),
)
def test_everybody_is_in_one_batch_and_passed_over_once_at_most(
    arrivals: list[list[int]], rows: int, cell: float
) -> None:
    cost = Cost(0.001, 0.0001, cell)
    backlog = waiting(cost=cost, rows=rows)
    came = passed = 0
    seen: list[int] = []
    left: list[int] = []
    for each in [*arrivals, *[[]] * 100]:
        for length in each:
            backlog.admit(Query(tuple(range(length)), 3), math.inf, came, 0.0)
            left.append(came)
            came += 1
        if not left:
            continue
        oldest = left[:rows]
        batch = take(backlog)
        taken = [waiter.payload for waiter in batch.waiters]
        assert taken[0] == oldest[0]
        assert set(oldest[:passed]) <= set(taken) <= set(oldest)
        left = [one for one in left if one not in taken]
        passed = len(oldest) - len(taken)
        assert (passed > 0) == (batch.closed is CloseReason.ALIKE)
        seen += taken
    assert sorted(seen) == list(range(came))


@given(
    before=st.lists(st.integers(1, 50), max_size=12),
    after=st.lists(st.integers(1, 50), max_size=12),
    rows=st.integers(1, 8),
    cell=st.sampled_from([0.0, 1e-5, 1e-4, 1e-2]),
)
def test_a_batch_that_is_full_is_the_next_one_whoever_comes_until_then(
    before: list[int], after: list[int], rows: int, cell: float
) -> None:
    backlog = waiting(*before, cost=Cost(0.001, 0.0001, cell), rows=rows)
    full = backlog.full_batch(0.0)
    assert len(backlog) == len(before)
    come(backlog, *after)
    batch = backlog.next_batch(0.0)
    if full is not None:
        assert batch is not None
        assert (batch.waiters, batch.queries, batch.closed) == (full.waiters, full.queries, full.closed)
    else:
        assert len(before) < rows
