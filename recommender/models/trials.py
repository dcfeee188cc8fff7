"""Trials of a version with random histories: single and batched, with any padding, and with several numbers."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from recommender.domain import Model, Query, Ranking
from recommender.engine.drawing import drawn_query
from recommender.engine.engine import OnnxEngine
from recommender.engine.sessions import as_model_error
from recommender.errors import InvalidRequestError, ModelError
from recommender.models.artifact import Artifact
from recommender.models.features import in_order
from recommender.models.parity import disparity, refusal, wanted

_HISTORIES = 20
_LONGEST = 16
"""Items of the longest random history."""
_MOST_SECONDS = 0.3
_LEAST_ALONE = 2
"""A slow model is tried with so many histories alone, and with more for so many seconds."""
_SHARE = 2.0**-13
"""Scores of one history may differ by this share of the largest one: the sums behind them round differently."""
_BARRED = 8
"""Items of the never-recommend list that are tried as candidates."""


async def check_histories(engine: OnnxEngine, path: Path) -> None:
    """Try random histories. Raises ModelError if the model contradicts itself, its card or the contract."""
    model = engine.model
    k = model.default_k
    with as_model_error(path):
        items = range(model.readable) if model.readable is not None else await _recommended(engine, path)
        draw = random.Random(1)  # noqa: S311 (fixed queries, and no secret)
        queries = [drawn_query(model, history, k, draw) for history in _random_histories(model, items)]
        if model.users is not None:
            if model.users.unknown != "fallback":
                queries[0] = queries[0]._replace(user=0)
            queries += [
                drawn_query(model, (), k, draw)._replace(user=user) for user in {model.users.first, model.users.last}
            ]
        if not model.reads_history:
            queries.append(drawn_query(model, (), k, draw))
        together = await engine.run(queries)
        began = time.monotonic()
        for number, (query, ranking) in enumerate(zip(queries, together, strict=True)):
            _check(path, query, ranking, model)
            if number < _LEAST_ALONE or time.monotonic() - began < _MOST_SECONDS:
                (alone,) = await engine.run([query])
                where = "alone and in a batch with longer ones: its padding changes its answer"
                _compare(path, query, alone, ranking, model, where)
        if model.padding_id is None:
            await _check_padding(engine, path, queries, together)
        if engine.contract.takes_k:
            await _check_numbers(engine, path, queries[0])
        if "candidates" in engine.contract.inputs and model.never_recommended:
            barred = tuple(sorted(model.never_recommended)[:_BARRED])
            (ranking,) = await engine.run([Query((model.some_item,), 1, candidates=barred)])
            if ranking.item_ids:
                raise _refusal(path, f"it recommends the item {ranking.item_ids[0]} as a candidate, which never is")


async def check_parity(engine: OnnxEngine, artifact: Artifact) -> None:
    """Raise ModelError unless the model ranks as its card says that it did where it was trained."""
    model = engine.model
    for expected in artifact.card.parity if artifact.card else ():
        query = expected.query(wanted(expected, model.max_k), model.longest_history)
        query = query._replace(features=in_order(model.features, expected.features))
        (ranking,) = await engine.run([query])
        fault = disparity(expected, ranking, model.score_tolerance)
        if fault is not None:
            raise ModelError(f"{artifact.path}: {refusal(expected, fault)}; export the model again")


async def _recommended(engine: OnnxEngine, path: Path) -> Sequence[int]:
    """The items of some answers, of a model that does not declare its catalogue: it must read them in histories."""
    model = engine.model
    (ranking,) = await engine.run([Query((model.some_item,), model.max_k)])
    for item in {*ranking.item_ids[:_HISTORIES], max(ranking.item_ids, default=model.some_item)}:
        try:
            await engine.run([Query((item,), 1)])
        except InvalidRequestError as error:
            raise _refusal(
                path,
                f"it recommends the item {item} and cannot read it in a history. Recommended ids and those of "
                "histories must be the same",
            ) from error
    return ranking.item_ids or [model.some_item]


def _random_histories(model: Model, items: Sequence[int]) -> list[tuple[int, ...]]:
    """Histories of different lengths from these items, without the padding id."""
    drawn = random.Random(0)  # noqa: S311 (fixed histories, and no secret)
    longest = min(model.longest_history or _LONGEST, _LONGEST)
    histories = []
    for number in range(_HISTORIES):
        history = drawn.choices(items, k=1 + number % longest)
        histories.append(tuple(model.some_item if item == model.padding_id else item for item in history))
    return histories


async def _check_padding(engine: OnnxEngine, path: Path, queries: Sequence[Query], expected: Sequence[Ranking]) -> None:
    """Raise ModelError if another id in the padding changes an answer."""
    padded = await engine.run(queries, padding=engine.model.last_item)
    for query, ranking, other in zip(queries, expected, padded, strict=True):
        _compare(
            path,
            query,
            ranking,
            other,
            engine.model,
            "with other ids in the padding: history_length alone must say what is padding, or its card which id is",
        )


async def _check_numbers(engine: OnnxEngine, path: Path, query: Query) -> None:
    """Raise ModelError unless an answer of any length begins like the longest one."""
    (longest,) = await engine.run([query._replace(k=engine.model.max_k)])
    for k in {1, query.k}:
        (ranking,) = await engine.run([query._replace(k=k)])
        prefix = Ranking(longest.item_ids[:k], longest.scores[:k])
        _compare(path, query, ranking, prefix, engine.model, f"for {k} and for {engine.model.max_k} recommendations")


def _check(path: Path, query: Query, ranking: Ranking, model: Model) -> None:
    ids = ranking.item_ids
    fault = None
    if len(set(ids)) != len(ids):
        fault = f"it recommends one item twice: {ids}"
    elif not model.never_recommended.isdisjoint(ids):
        fault = f"it recommends {min(model.never_recommended.intersection(ids))}, which its card says it never does"
    if fault is not None:
        raise _refusal(path, f"for {query.told} {fault}")


def _compare(path: Path, query: Query, one: Ranking, other: Ranking, model: Model, where: str) -> None:
    largest = max(map(abs, (*one.scores, *other.scores)), default=0.0)
    if not one.equals(other, max(model.score_tolerance, _SHARE * largest)):
        raise _refusal(
            path,
            f"it ranks {one.item_ids} and {other.item_ids} for {query.told}, {where}",
        )


def _refusal(path: Path, fault: str) -> ModelError:
    return ModelError(f"{path} contradicts itself: {fault}; train or export the model again")
