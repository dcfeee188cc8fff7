"""The engine on real ONNX Runtime: ragged batches, separate rows, threads, memory."""

from __future__ import annotations

import asyncio
import math
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Query, Ranking
from recommender.engine.engine import OnnxEngine
from recommender.engine.provider import SessionPlan
from recommender.errors import EngineError, InvalidRequestError
from tests.support import models
from tests.support.engines import Load
from tests.support.paths import WEIGHTS

ITEMS = 50
TABLE = models.table(ITEMS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.batched(tmp_path / "10_model.onnx", TABLE)


def batcher(engine: OnnxEngine) -> Batcher:
    return Batcher(engine, max_batch_size=8, max_backlog=100, engine_timeout=30, cost=Cost(0.001))


async def test_histories_of_any_length_share_a_batch_and_each_gets_its_own_answer(load: Load, model: Path) -> None:
    histories: list[tuple[int, ...]] = [(1, 2, 3), (0,), (49, 0, 0, 7, 7), tuple(range(40))]
    rankings = await load(model).run([Query(history, 10) for history in histories])
    for history, ranking in zip(histories, rankings, strict=True):
        assert ranking.item_ids == models.brute_force(TABLE, history, 10)[0]
        scores = TABLE[ranking.item_ids] @ TABLE[list(history)].mean(axis=0)
        assert np.allclose(ranking.scores, scores, atol=1e-6)


async def test_each_row_gets_as_many_as_it_asked_for(load: Load, model: Path) -> None:
    rankings = await load(model).run([Query((1, 2), k) for k in (1, 30, 10)])
    expected = models.brute_force(TABLE, [1, 2], 30)[0]
    assert [ranking.item_ids for ranking in rankings] == [expected[:1], expected, expected[:10]]


async def test_a_model_of_a_fixed_number_gives_its_prefix(load: Load, tmp_path: Path) -> None:
    engine = load(models.batched(tmp_path / "m.onnx", TABLE, k=7))
    assert (engine.model.default_k, engine.model.max_k) == (7, 7)
    (ranking,) = await engine.run([Query((4,), 3)])
    assert ranking.item_ids == models.brute_force(TABLE, [4], 3)[0]
    assert len(ranking.scores) == 3


async def test_where_nobody_knows_the_catalogue_a_stranger_fails_its_own_row_only(load: Load, model: Path) -> None:
    engine = load(model)
    assert engine.model.items is None
    batching = batcher(engine)
    histories: list[tuple[int, ...]] = [(1, 2), (3, ITEMS), (4,), (10**6,), (5, 6, 7), (8,), (9,), (ITEMS - 1,)]
    answers = await asyncio.gather(
        *(batching.submit(Query(history, 10)) for history in histories), return_exceptions=True
    )
    for history, answer in zip(histories, answers, strict=True):
        if max(history) < ITEMS:
            assert not isinstance(answer, BaseException)
            assert answer.item_ids == models.brute_force(TABLE, history, 10)[0]
        else:
            assert isinstance(answer, InvalidRequestError)
            assert answer.violations[0].field == "item_ids"
            assert str(max(history)) in str(answer)
    assert batching.statistics().invalid == 2
    await batching.close()


async def test_a_model_without_card_takes_its_limits_from_its_metadata(load: Load, tmp_path: Path) -> None:
    metadata = {"recommender.items": "50", "recommender.default_k": "6", "recommender.max_k": "20"}
    engine = load(models.batched(tmp_path / "any.onnx", TABLE, metadata=metadata))
    model = engine.model
    assert (model.name, model.items, model.default_k, model.max_k) == ("any", 50, 6, 20)
    await engine.warm_up(4)


async def test_the_older_form_is_served_row_by_row_with_the_same_answers(load: Load, tmp_path: Path) -> None:
    engine = load(models.write_older_model(tmp_path / "5_model.onnx", TABLE, 5))
    assert not engine.contract.batched
    assert (engine.model.default_k, engine.model.max_k) == (5, 5)
    histories = [(1, 2, 3), (0,), (49, 48)]
    rankings = await engine.run([Query(history, 3) for history in histories])
    for history, ranking in zip(histories, rankings, strict=True):
        assert ranking.item_ids == models.brute_force(TABLE, history, 3)[0]
        assert ranking.scores == []


async def test_in_the_older_form_too_a_stranger_fails_its_own_row_only(load: Load, tmp_path: Path) -> None:
    batching = batcher(load(models.write_older_model(tmp_path / "5_model.onnx", TABLE, 5)))
    good, bad = await asyncio.gather(
        batching.submit(Query((1, 2), 5)), batching.submit(Query((ITEMS,), 5)), return_exceptions=True
    )
    assert not isinstance(good, BaseException)
    assert good.item_ids == models.brute_force(TABLE, [1, 2], 5)[0]
    assert isinstance(bad, InvalidRequestError)
    await batching.close()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"flaws": {7: math.nan}}, "the model gives the score nan to item"),
        ({"flaws": {7: math.inf}}, "the model gives the score inf to item"),
        ({"shifts": {7: 2**31}}, r"not in its catalogue: 21474\d+, and ids run from 0 to"),
        ({"shifts": {7: -100}}, r"not in its catalogue: -\d+, and ids run from 0 to"),
        ({"shifts": {7: 50}, "metadata": {"recommender.items": "50"}}, r"catalogue: \d+, and ids run from 0 to 49"),
    ],
)
async def test_a_row_that_the_model_answers_with_nonsense_fails_alone(
    load: Load, tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    engine = load(models.batched(tmp_path / "10_model.onnx", TABLE, **change))
    calls = batcher(engine)
    outcomes = await calls.submit_many([Query((1,), 10), Query((2, 7), 10), Query((3,), 4)])
    alone = await asyncio.gather(calls.submit(Query((7,), 10)), return_exceptions=True)
    statistics = calls.statistics()
    await calls.close()

    for history, outcome in zip((1, 3), (outcomes[0], outcomes[2]), strict=True):
        assert isinstance(outcome, Ranking)
        assert outcome.item_ids == models.brute_force(TABLE, [history], len(outcome.item_ids))[0]
    for failed in (outcomes[1], *alone):
        assert isinstance(failed, EngineError)
        assert re.search(fault, str(failed))
    assert (statistics.failed, statistics.answered, statistics.split) == (2, 2, 0)


async def test_an_item_that_scores_minus_infinity_is_no_recommendation(load: Load, tmp_path: Path) -> None:
    engine = load(models.batched(tmp_path / "10_model.onnx", TABLE, flaws={7: -math.inf}))
    assert [ranking.item_ids for ranking in await engine.run([Query((7,), 10), Query((1,), 2)])] == [
        [],
        models.brute_force(TABLE, [1], 2)[0],
    ]


async def test_numbers_in_a_file_beside_the_model_are_read(load: Load, tmp_path: Path) -> None:
    embeddings = models.table(2_000, 16)
    engine = load(models.batched(tmp_path / "10_model.onnx", embeddings, external=True))
    (ranking,) = await engine.run([Query((1_999, 7), 10)])
    assert ranking.item_ids == models.brute_force(embeddings, [1_999, 7], 10)[0]


async def test_runs_happen_on_the_engines_own_thread(load: Load, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(model)
    seen = []
    unpack = type(engine.contract).unpack

    def noting(*arguments: object) -> object:
        seen.append(threading.current_thread())
        return unpack(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(engine.contract), "unpack", noting)
    await engine.run([Query((1,), 1)])
    assert threading.main_thread() not in seen
    assert len(seen) == 1


async def test_a_run_that_takes_too_long_can_be_ended(load: Load, tmp_path: Path) -> None:
    engine = load(models.endless(tmp_path / "1_model.onnx"))
    run = asyncio.create_task(engine.run([Query((1,), 1)]))
    while not run.done():
        engine.terminate()
        await asyncio.wait({run}, timeout=0.01)
    with pytest.raises(Exception, match="terminate"):
        run.result()


@pytest.mark.parametrize(
    "queries",
    [
        pytest.param([Query((1, 2), 5), Query((3,), 5)], id="plain"),
        pytest.param([Query((1, 2) * 2_000, 5), Query((3,), 5)], id="long"),
        pytest.param([Query((1, 2), 5, (3, 4)), Query((3,), 5)], id="excluded"),
        pytest.param([Query((1, 2), 5, (), (7, 8, 9)), Query((3,), 2)], id="candidates"),
    ],
)
async def test_a_staged_run_gives_what_a_run_gives_and_says_when_it_began(
    load: Load, model: Path, queries: list[Query]
) -> None:
    engine = load(model)
    before = time.monotonic()
    staged = engine.stage(queries)
    assert await staged.result() == await engine.run(queries)
    assert staged.began is not None
    assert before <= staged.began <= time.monotonic()
    assert not staged.take_back()


@pytest.mark.parametrize("step", ["pack", "unpack"])
async def test_the_loop_packs_and_unpacks_what_is_staged_only_where_that_takes_no_time(
    load: Load, model: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    engine = load(model)
    threads = []
    original = getattr(type(engine.contract), step)

    def noting(*arguments: object) -> object:
        threads.append(threading.current_thread().name)
        return original(*arguments)

    monkeypatch.setattr(type(engine.contract), step, noting)
    await engine.stage([Query((1,), 1)] * 64).result()
    await engine.stage([Query((1,) * 200, 1)] + [Query((1,), 1)] * 63).result()
    await engine.stage([Query((1,) * 300, 1)] * 64).result()
    await engine.stage([Query((1,), 30)] * 200).result()
    await engine.stage([Query((1,), 1, (2,))]).result()
    loop = threading.current_thread().name
    assert threads == [loop, loop, "engine-0", "engine-0", "engine-0"]


async def test_a_staged_run_that_meets_a_stranger_is_the_requests_fault(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "5_model.onnx", TABLE)
    path.with_suffix(".card.json").unlink(missing_ok=True)
    engine = load(path)
    with pytest.raises(InvalidRequestError, match="not in the catalogue"):
        await engine.stage([Query((ITEMS,), 5)]).result()


async def test_a_staged_run_begins_when_the_one_under_way_has_ended_unless_it_was_taken_back(
    load: Load, tmp_path: Path
) -> None:
    engine = load(models.endless(tmp_path / "1_model.onnx"))
    run = asyncio.create_task(engine.run([Query((1,), 1)]))
    await asyncio.sleep(0)
    taken, kept = engine.stage([Query((1,), 1)]), engine.stage([Query((1,), 1)])
    assert (taken.take_back(), taken.take_back()) == (True, False)
    ended = asyncio.create_task(kept.result())
    while not ended.done():
        engine.terminate()
        await asyncio.wait({ended}, timeout=0.01)
    for each in (run, ended):
        with pytest.raises(Exception, match="terminate"):
            await each
    assert taken.began is None
    assert kept.began is not None


async def test_a_closed_engine_has_no_threads_left(load: Load, model: Path) -> None:
    engine = load(model, slots=3)
    await engine.run([Query((1,), 1)])
    assert sum(thread.name.startswith("engine-") for thread in threading.enumerate()) >= 3
    assert engine.close()
    assert not any(thread.name.startswith("engine-") for thread in threading.enumerate())


async def test_an_engine_may_be_closed_twice(load: Load, model: Path) -> None:
    engine = load(model)
    assert (engine.close(), engine.close()) == (True, True)


async def test_both_sessions_of_a_small_model_rank_alike(load: Load) -> None:
    quick = load(WEIGHTS / "10_model.onnx")
    queries = [Query((1, 2, 3), 10), Query((4,), 5)]
    general, plain = [await run(queries) for run in quick.ways]
    assert [ranking.item_ids for ranking in general] == [ranking.item_ids for ranking in plain]


async def test_a_model_that_is_as_quick_on_one_cpu_takes_no_more(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "1_model.onnx", models.table(100, 8))
    told = load(path, plan=SessionPlan(2))
    assert told.threads == 2
    # The choice is measured, and a machine may be too busy for it once.
    quick = next((engine for engine in (load(path) for _ in range(10)) if engine.threads == 1), None)
    assert quick is not None
    assert await quick.run([Query((1, 2), 2)]) == await told.run([Query((1, 2), 2)])


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system has no CPU clock of a thread")
async def test_a_large_run_begins_although_the_loop_has_work_of_its_own(load: Load, tmp_path: Path) -> None:
    engine = load(models.batched(tmp_path / "1_model.onnx", models.table(100_000, 64)), plan=SessionPlan(1))
    queries = [Query((item,), 1) for item in range(64)]
    await engine.run(queries)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "engine-0")
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)

    def begins() -> bool:
        run = engine.run(queries)
        run.send(None)
        before, patience = time.clock_gettime(clock), time.thread_time() + 0.1
        while time.clock_gettime(clock) - before < 1e-3 and time.thread_time() < patience:
            pass  # nothing here lets go of the interpreter
        run.close()
        return time.clock_gettime(clock) - before >= 1e-3

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    try:
        # A handover is bounded, and a machine may be too busy for it once.
        assert any(begins() for _ in range(20))
    finally:
        sys.setswitchinterval(interval)
        await engine.run(queries)


def test_threads_are_shared_out_among_the_slots(load: Load, model: Path) -> None:
    assert load(model, plan=SessionPlan(3)).threads == 3
    assert load(model, slots=64).threads == 1


def test_the_engine_says_what_the_model_costs(load: Load, tmp_path: Path) -> None:
    engine = load(models.batched(tmp_path / "10_model.onnx", models.table(400_000, 32)))
    memory = engine.memory
    assert memory.constants == 400_000 * 32 * 4 + 4 * 8
    if memory.copies is None:
        pytest.skip("this system does not tell what a process holds")
    assert 0.9 < memory.copies < 3


def test_small_models_claim_no_number_of_copies(load: Load, model: Path) -> None:
    assert load(model).memory.copies is None


async def test_scores_are_finite_in_every_answer(load: Load, model: Path) -> None:
    (ranking,) = await load(model).run([Query((1,), 50)])
    assert all(map(math.isfinite, ranking.scores))
