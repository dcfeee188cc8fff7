"""Versions that read types and times: what their cards and files must say, and what their checks find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recommender.domain import Query, Times, Types
from recommender.errors import ModelError
from recommender.models.artifact import Release, open_version
from recommender.models.card import file_sha256
from recommender.models.loader import loader
from recommender.models.proof import Proof
from recommender.models.version import Version
from recommender.settings.settings import Settings
from tests.support import models
from tests.support.engines import Load
from tests.support.versions import MORNING, K, embeddings_of, write_version

KEYS = ["view", "cart", "bought"]
TABLE = np.random.default_rng(4).normal(0, 2, (len(KEYS) + 1, 8)).astype(np.float32)
BOTH: dict[str, Any] = {"types": TABLE, "timed": True}


async def loaded(folder: Path) -> tuple[Version, Proof]:
    artifact = open_version(folder, Release("shop", folder.name))
    version = await loader(Settings(num_recommendations=K)).load(artifact)
    await version.batcher.close()
    version.close_engine()
    return version, Proof.of(version, artifact)


async def test_a_version_with_types_their_keys_and_times_is_proven(tmp_path: Path) -> None:
    says: dict[str, Any] = {
        "history_types": {"count": 3, "unknown": 0, "default": 2},
        "history_times": {"default": 7, "sorted_times": True},
    }
    version, proof = await loaded(write_version(tmp_path / "1", 1, **BOTH, type_keys=KEYS, **says))

    assert version.model.history_types == Types(3, 1, unknown=0, default=2)
    assert version.model.history_times == Times(default=7, sorted_times=True)
    assert version.type_vocabulary is not None
    assert version.type_vocabulary.ids(["view", "bought", "none"]) == [0, 2, None]
    assert (proof.type_vocabulary, proof.golden) == (3, 3)


def in_the_card(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / "card.json").read_text(encoding="utf-8")
        assert old in text
        (folder / "card.json").write_text(text.replace(old, new), encoding="utf-8")

    return spoil


def other_types(folder: Path) -> None:
    """Another model of the same form, with its digest in the card."""
    model = models.write_model(folder / "model.onnx", embeddings_of(1), default_k=K, types=TABLE[::-1], timed=True)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["files"][0] |= {"size": model.stat().st_size, "sha256": file_sha256(model)}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spoil": in_the_card('"count": 3', '"count": 4')}, "loads but does not run"),
        ({"type_keys": KEYS[:2]}, "has 2 keys and the model 3 types: every type needs one"),
        (
            {"spoil": in_the_card('"history_types": {', '"others": {')},
            "it has an input history_types, and neither its card nor its metadata",
        ),
        (
            {"spoil": in_the_card('"history_times": {"default', '"others": {"default')},
            "it has an input history_times, and its card has no history_times",
        ),
        ({"timed": False, "history_times": {}}, "its card says that it takes history_times, but it has no such input"),
        ({"types": None, "history_types": {"count": 3}}, "says how many history_types it takes, and has no input"),
        ({"spoil": other_types}, r"does not give its card's answer: for the history \[1, 2, 3\] with the types"),
        ({"spoil": in_the_card('[1, 2, 3], "history_times', '[1, 2], "history_times')}, "history_types are 2, and the"),
        ({"spoil": in_the_card('"unknown": null', '"unknown": 4')}, "unknown is 4, and ids of types run to 3"),
    ],
)
async def test_a_version_whose_types_or_times_are_not_what_it_says_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        await loaded(write_version(tmp_path / "1", 1, **(BOTH | changes)))


def told_of(**more: str) -> dict[str, str]:
    told = {"items": "50", "default_k": str(K), "max_k": str(K), **more}
    return {f"recommender.{key}": value for key, value in told.items()}


def test_a_model_without_a_card_says_in_its_metadata_how_many_types_it_reads(load: Load, tmp_path: Path) -> None:
    path = models.batched(tmp_path / "5_model.onnx", models.table(), **BOTH, metadata=told_of())
    with pytest.raises(ModelError, match=r"nor its metadata recommender\.history_types says how many"):
        load(path)
    models.batched(path, models.table(), **BOTH, metadata=told_of(history_types="3"))
    model = load(path).model

    assert (model.history_types, model.history_times) == (Types(3), Times())


@pytest.mark.parametrize("options", [{}, {"bucketed": True}, {"slots": 2}])
async def test_rows_with_and_without_them_share_a_run_on_every_way_through_the_engine(
    load: Load, tmp_path: Path, options: dict[str, Any]
) -> None:
    file = models.batched(tmp_path / "5_model.onnx", models.table(), **BOTH, metadata=told_of(history_types="3"))
    engine = load(file, **options)
    drawn = np.random.default_rng(5)

    def drawn_query(row: int) -> Query:
        size = int(drawn.integers(1, 12))
        query = Query(tuple(drawn.integers(0, 50, size).tolist()), K)
        if row % 3:
            query = query._replace(history_types=tuple(drawn.integers(0, 4, size).tolist()))
        return query._replace(history_times=tuple(drawn.integers(0, MORNING, size).tolist())) if row % 2 else query

    queries = [drawn_query(row) for row in range(40)]
    for run in engine.ways:
        for batch in (queries, queries[:3], queries[1:2]):
            for query, ranking in zip(batch, await run(batch), strict=True):
                types = TABLE[list(query.history_types or [1] * len(query.history))]
                times = query.history_times
                best, _ = models.brute_force(models.table(), query.history, K, of_types=types, times=times)
                assert ranking.item_ids == best, query


def test_a_run_with_other_ids_in_the_padding_has_other_types_and_times_there_too(load: Load, tmp_path: Path) -> None:
    file = models.batched(tmp_path / "5_model.onnx", models.table(), **BOTH, metadata=told_of(history_types="3"))
    contract = load(file).contract
    queries = [Query((1, 2), K, history_types=(3, 2), history_times=(5, 6)), Query((4,), K)]
    usual, other = contract.pack(queries), contract.pack(queries, padding=9)

    assert usual["history_types"].tolist() == [[3, 2], [1, 0]]
    assert usual["history_times"].tolist() == [[5, 6], [0, 0]]
    assert other["history_types"].tolist() == [[3, 2], [1, 3]]
    assert other["history_times"][:, 0].tolist() == [5, 0]
    assert other["history_times"][1, 1] > MORNING
