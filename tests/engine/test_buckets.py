"""Runs in buckets: the code that CUDA takes, run on the CPU, gives what plain runs give."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from recommender.domain import Model, Query
from recommender.engine.buckets import Bucket, Buckets, bucket_for
from recommender.engine.engine import OnnxEngine
from recommender.models.artifact import open_artifact
from recommender.models.checks import check_answers
from recommender.settings.engine import Device
from tests.support import models
from tests.support.engines import Load
from tests.support.paths import WEIGHTS

TABLE = models.table(60)


def model(longest: int | None = None, default_k: int = 10, max_k: int = 50) -> Model:
    return Model("m", "1", 60, default_k, max_k, longest, 0.0)


@pytest.mark.parametrize(
    ("rows", "history", "k", "bucket"),
    [
        (1, 1, 1, Bucket(1, 8, 10)),
        (2, 8, 10, Bucket(2, 8, 10)),
        (3, 9, 11, Bucket(4, 32, 16)),
        (64, 100, 40, Bucket(64, 128, 50)),
        (65, 129, 50, Bucket(128, 512, 50)),
    ],
)
def test_a_batch_goes_into_the_smallest_bucket_that_holds_it(rows: int, history: int, k: int, bucket: Bucket) -> None:
    assert bucket_for(rows, history, k, model()) == bucket


def test_no_bucket_is_longer_than_what_the_network_reads() -> None:
    assert bucket_for(1, 40, 1, model(longest=50)).history == 50
    assert bucket_for(1, 3, 1, model(longest=5)).history == 5


@pytest.mark.parametrize("limits", [model(), model(longest=70), model(default_k=1)])
def test_every_batch_has_a_bucket_that_holds_it_and_more_never_takes_less(limits: Model) -> None:
    buckets = [bucket_for(n, n, n, limits) for n in range(1, 51)]
    assert all(
        less.rows <= more.rows and less.history <= more.history and less.k <= more.k for less, more in pairwise(buckets)
    )
    assert all(bucket.rows >= n and bucket.history >= n and bucket.k >= n for n, bucket in enumerate(buckets, 1))


def engines(load: Load, path: Path) -> tuple[OnnxEngine, OnnxEngine]:
    return load(path), load(path, bucketed=True)


async def same(plain: OnnxEngine, bucketed: OnnxEngine, queries: list[Query]) -> None:
    for expected, found in zip(await plain.run(queries), await bucketed.run(queries), strict=True):
        assert expected.equals(found, 1e-5)
        assert len(found.item_ids) == len(expected.item_ids)


@pytest.mark.parametrize("fixed_k", [None, 10])
async def test_batches_of_any_shape_get_the_same_answers(load: Load, tmp_path: Path, fixed_k: int | None) -> None:
    metadata = {"recommender.items": "60", "recommender.default_k": "10"}
    if fixed_k is None:
        metadata["recommender.max_k"] = "50"
    path = models.batched(tmp_path / "10_model.onnx", TABLE, metadata=metadata, k=fixed_k)
    plain, bucketed = engines(load, path)
    await bucketed.warm_up(8)
    draw = np.random.default_rng(0)
    for _ in range(60):
        queries = [
            Query(
                tuple(draw.integers(0, 60, draw.integers(1, 40)).tolist()), int(draw.integers(1, plain.model.max_k + 1))
            )
            for _ in range(draw.integers(1, 20))
        ]
        await same(plain, bucketed, queries)


async def test_answers_stay_when_their_bucket_is_used_again(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "10_model.onnx", TABLE, k=10)
    _, bucketed = engines(load, path)
    first, second = await asyncio.gather(bucketed.run([Query((1, 2), 10)]), bucketed.run([Query((3,), 10)]))
    assert first[0].item_ids == models.brute_force(TABLE, [1, 2], 10)[0]
    assert second[0].item_ids == models.brute_force(TABLE, [3], 10)[0]


async def test_staged_runs_keep_their_answers_when_their_bucket_is_used_again(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "10_model.onnx", TABLE, k=10)
    _, bucketed = engines(load, path)
    histories = [(1, 2), (3,), (4, 5), (6,)]
    staged = [bucketed.stage([Query(history, 10)]) for history in histories]
    await staged[-1].result()  # by now every one has been in the bucket
    for run, history in zip(staged, histories, strict=True):
        (ranking,) = await run.result()
        assert ranking.item_ids == models.brute_force(TABLE, list(history), 10)[0]


async def test_slots_do_not_meet_in_one_bucket(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "10_model.onnx", TABLE, k=10)
    engine = load(path, bucketed=True, slots=4)
    histories = [[number % 60, (7 * number) % 60] for number in range(200)]
    answers = await asyncio.gather(*(engine.run([Query(tuple(history), 10)]) for history in histories))
    for history, (ranking,) in zip(histories, answers, strict=True):
        assert ranking.item_ids == models.brute_force(TABLE, history, 10)[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
async def test_the_reference_model_gives_its_golden_answers_in_buckets(load: Load, device: Device) -> None:
    artifact = open_artifact(WEIGHTS / "10_model.onnx")
    engine = load(artifact.path, bucketed=True, device=device)
    await engine.warm_up(16)
    await check_answers(engine, artifact)


async def test_exclusions_and_candidates_go_without_a_bucket(load: Load) -> None:
    plain, bucketed = engines(load, WEIGHTS / "10_model.onnx")
    queries = [
        Query((1, 2, 3), 10, excluded=(5510, 1021)),
        Query((4,), 5, candidates=(7, 8, 9, 4000)),
        Query((5, 6), 10),
    ]
    await same(plain, bucketed, queries)
    await same(plain, bucketed, queries[2:])


def test_the_shapes_visited_at_warm_up_hold_every_batch_up_to_the_largest(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "10_model.onnx", TABLE, metadata={"recommender.items": "60"}, k=10)
    engine = load(path)
    buckets = Buckets(None, engine.contract, engine.model)
    visited = set(buckets.shapes(24, 100))
    for rows in range(1, 25):
        for history in range(1, 101):
            assert bucket_for(rows, history, 10, engine.model) in visited
    assert len(visited) == 6 * 3
