"""The threads of a job: order, bounds, and what ends them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from recommender.bulk.errors import BulkError
from recommender.bulk.pipeline import Pipeline
from recommender.bulk.scoring import Task

PATIENCE = 30.0


@dataclass(frozen=True)
class Batch:
    """A batch that knows its part."""

    part: int
    places: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Unit:
    """A part of so many batches."""

    number: int
    task: Task


def units(*sizes: int) -> Iterator[Any]:
    for number, size in enumerate(sizes):
        yield Unit(number, Task([Batch(number)] * size, None))  # type: ignore[arg-type, list-item]


def test_parts_are_committed_in_order_and_one_at_most_is_ranked_before_it() -> None:
    ranked: dict[int, int] = {}
    committed: list[int] = []
    lock = threading.Lock()
    most_whole = 0
    sizes = (3, 1, 0, 5, 1, 1, 0, 0, 4)

    def rank(batch: Any, _: Any) -> None:
        nonlocal most_whole
        with lock:
            ranked[batch.part] = ranked.get(batch.part, 0) + 1
            whole = [part for part, count in ranked.items() if count == sizes[part] and part not in committed]
            most_whole = max(most_whole, len(whole))

    def commit(unit: Unit) -> None:
        threading.Event().wait(0.01)  # slower than ranking
        with lock:
            committed.append(unit.number)

    pipeline: Pipeline[Any] = Pipeline(lambda: units(*sizes), rank, commit, threads=3, longest=PATIENCE)
    pipeline.run(lambda: None)

    assert committed == list(range(len(sizes)))
    assert ranked == {part: size for part, size in enumerate(sizes) if size}
    assert most_whole == 1
    assert pipeline.ranked == sum(sizes)


@pytest.mark.parametrize("where", ["read", "rank", "commit"])
def test_an_error_anywhere_ends_everything(where: str) -> None:
    before = threading.active_count()

    def fail(*_: Any) -> None:
        raise BulkError(where)

    def read() -> Iterator[Any]:
        yield from units(2, 2)
        fail()

    pipeline: Pipeline[Any] = Pipeline(
        read if where == "read" else lambda: units(*[2] * 1000),
        fail if where == "rank" else lambda *_: None,
        fail if where == "commit" else lambda *_: None,
        threads=2,
        longest=PATIENCE,
    )
    with pytest.raises(BulkError, match=where):
        pipeline.run(lambda: None)
    assert threading.active_count() == before


def test_a_batch_that_hangs_ends_the_job() -> None:
    release = threading.Event()

    def rank(*_: Any) -> None:
        release.wait(PATIENCE)

    pipeline: Pipeline[Any] = Pipeline(lambda: units(1), rank, lambda _: None, threads=1, longest=0.05)
    with pytest.raises(BulkError, match="the engine hangs"):
        pipeline.run(lambda: None)
    release.set()
