"""Checks of a version before it serves: its card's answers, its limits, the time of its batches."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from recommender.batching.cost import Observation
from recommender.domain import Feature, Model, Query, Ranking
from recommender.engine.engine import OnnxEngine, Run
from recommender.engine.features import extreme_features
from recommender.engine.sessions import as_model_error
from recommender.errors import ModelError
from recommender.models.artifact import Artifact
from recommender.models.features import in_order

_REPEATS = 3
_LENGTH = 32
"""Items of a history that is long enough to show what histories cost."""
_LATE = 4_102_444_800_000
"""Unix milliseconds of the year 2100."""
_RESTRICTED = 8
"""Recommendations of a ranking that exclusions and candidates are tried on."""


async def check_answers(engine: OnnxEngine, artifact: Artifact) -> None:
    """Check a model's golden answers and its limits, on every way through the engine.

    Raises ModelError if one does not hold or a run fails.
    """
    with as_model_error(artifact.path):
        for run in engine.ways:
            await check_golden_answers(run, artifact, engine.model.features)
        await check_limits(engine.run, artifact.path, engine.model)
        await check_restrictions(engine.run, artifact.path, engine.model, engine.contract.inputs)


async def check_golden_answers(run: Run, artifact: Artifact, features: Sequence[Feature]) -> None:
    """Raise ModelError unless the model gives its card's golden answers, in one batch and alone."""
    card = artifact.card
    if card is None or not card.golden:
        return
    queries = [golden.query._replace(features=in_order(features, golden.features)) for golden in card.golden]
    batched = await run(queries)
    for golden, query, in_batch in zip(card.golden, queries, batched, strict=True):
        expected = Ranking(list(golden.recommendations), list(golden.scores))
        for ranking in (in_batch, *await run([query])):
            if not ranking.equals(expected, card.score_tolerance):
                raise ModelError(
                    f"{artifact.path} does not give its card's answer: for {query.told} it ranks "
                    f"{ranking.item_ids} and the card says {expected.item_ids}; export the model again"
                )


async def check_limits(run: Run, path: Path, model: Model) -> None:
    """Raise ModelError unless the catalogue's last item has a valid answer of `max_k` items.

    So must the last user, the last type of events at a late time, and the extremes of features.
    """
    queries = [Query((model.last_item,), model.max_k)]
    types = () if model.history_types is None else (model.history_types.last,)
    times = () if model.history_times is None else (_LATE,)
    if types or times:
        queries.append(queries[0]._replace(history_types=types, history_times=times))
    if model.users is not None:
        last = model.users.last
        queries += [Query((), model.max_k, user=last), queries[-1]._replace(user=last)]
    queries += [queries[0]._replace(features=each) for each in extreme_features(model.features)]
    for query, ranking in zip(queries, await run(queries), strict=True):
        fault = _fault(ranking, model)
        if fault is not None:
            raise ModelError(
                f"{path} does not keep its limits: for {query.told} {fault}; train or export the model again"
            )


def _fault(ranking: Ranking, model: Model) -> str | None:
    """Why a ranking of `max_k` items is not valid; None if it is."""
    ids = ranking.item_ids
    fault = None
    most = model.max_k if model.items is None else min(model.max_k, model.items - len(model.never_recommended))
    if len(ids) != most:
        fault = f"it gives {len(ids)} recommendations, not {most}"
    elif not model.never_recommended.isdisjoint(ids):
        barred = min(model.never_recommended.intersection(ids))
        fault = f"it recommends the item {barred}, which is on the never-recommend list of its card"
    elif len(set(ids)) != len(ids) or min(ids) < 0 or (model.items is not None and max(ids) >= model.items):
        fault = f"it recommends what is not in its catalogue, or one item twice: {ids}"
    elif not all(map(math.isfinite, ranking.scores)):
        fault = "it gives scores that are not numbers"
    return fault


async def check_restrictions(run: Run, path: Path, model: Model, inputs: frozenset[str]) -> None:
    """Raise ModelError unless exclusions and candidates hold, in a batch with a row that has neither.

    Only restrictions with an input of the model are tried.
    """
    k = min(model.max_k, _RESTRICTED)
    plain = Query((model.some_item,), k)
    (best,) = (ranking.item_ids for ranking in await run([plain]))
    without, among = best[:1], tuple(sorted(best[1:] or best))
    faults = []
    if "excluded" in inputs:
        _, ranking = await run([plain, plain._replace(excluded=tuple(without))])
        left = k if model.items is None else min(k, model.items - len(model.never_recommended) - len(without))
        if set(without) & set(ranking.item_ids) or len(ranking.item_ids) != left:
            faults.append(f"without {without} it ranks {ranking.item_ids}")
    if "candidates" in inputs:
        _, ranking = await run([plain, Query((model.some_item,), len(among), candidates=among)])
        if sorted(ranking.item_ids) != list(among):
            faults.append(f"among {list(among)} it ranks {ranking.item_ids}")
    if faults:
        raise ModelError(
            f"{path} does not keep to what is excluded or to candidates: {'; '.join(faults)}; export the model again"
        )


def check_seconds(observations: Sequence[Observation], path: Path, most: float) -> None:
    """Raise ModelError if a batch took more than `most` seconds."""
    slowest = max(observations, key=lambda seen: seen.seconds)
    if slowest.seconds > most:
        raise ModelError(
            f"{path} is too slow: a batch of {slowest.rows} rows took {slowest.seconds * 1e3:.1f} ms and "
            f"{most * 1e3:g} ms are allowed; export a smaller model, lower "
            "RECOMMENDER_MAX_BATCH_SIZE, or raise RECOMMENDER_LONGEST_RUN_MS"
        )


async def measure(run: Run, model: Model, max_batch_size: int) -> list[Observation]:
    """Time batches of up to `max_batch_size` rows, with short and long histories."""
    length = min(model.longest_history or _LENGTH, _LENGTH)
    seen = []
    for rows in sorted({1, max(max_batch_size // 4, 1), max_batch_size}):
        for items in sorted({1, length}):
            queries = [Query((model.some_item,) * items, model.default_k)] * rows
            await run(queries)  # the first run of a shape allocates
            seconds = []
            for _ in range(_REPEATS):
                started = time.perf_counter()
                await run(queries)
                seconds.append(time.perf_counter() - started)
            seen.append(Observation(rows, rows * items, statistics.median(seconds)))
    return seen
