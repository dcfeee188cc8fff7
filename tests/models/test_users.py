"""Versions that take users: what their cards, their metadata and their files must say, and what their checks find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recommender.domain import Query, Users
from recommender.errors import ModelError
from recommender.models.artifact import Release, open_version
from recommender.models.card import file_sha256
from recommender.models.loader import loader
from recommender.models.proof import Proof
from recommender.models.version import Version
from recommender.settings.settings import Settings
from tests.support import models
from tests.support.engines import Load
from tests.support.versions import K, embeddings_of, write_version

USERS = 6
KEYS = [f"user {number}" for number in range(1, USERS + 1)]
TABLE = np.random.default_rng(3).normal(0, 2, (USERS + 1, 8)).astype(np.float32)


async def loaded(folder: Path) -> tuple[Version, Proof]:
    artifact = open_version(folder, Release("shop", folder.name))
    version = await loader(Settings(num_recommendations=K)).load(artifact)
    await version.batcher.close()
    version.close_engine()
    return version, Proof.of(version, artifact)


async def test_a_version_with_users_and_their_keys_is_proven(tmp_path: Path) -> None:
    version, proof = await loaded(write_version(tmp_path / "1", 1, users=TABLE, user_keys=KEYS))

    assert version.model.users == Users(USERS)
    assert version.user_vocabulary is not None
    assert version.user_vocabulary.ids(["user 1", "user 6", "user 7"]) == [0, 5, None]
    assert (proof.user_vocabulary, proof.golden) == (USERS, 3)


def sign(folder: Path) -> None:
    """Let the card have the digest of the model that is there now."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    model = folder / "model.onnx"
    card["files"][0] |= {"size": model.stat().st_size, "sha256": file_sha256(model)}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


def in_the_card(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / "card.json").read_text(encoding="utf-8")
        assert old in text
        (folder / "card.json").write_text(text.replace(old, new), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spoil": in_the_card('"count": 6', '"count": 7')}, "loads but does not run"),
        ({"user_keys": KEYS[:5]}, "has 5 keys and the model 6 users: every user needs one"),
        (
            {"spoil": in_the_card('"users": {', '"others": {')},
            "has an input user, and neither its card nor its metadata",
        ),
        ({"spoil": in_the_card('"first": 1', '"first": 0')}, "user 0 is a user like any other where first is 0"),
    ],
)
async def test_a_version_whose_users_are_not_what_it_says_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        await loaded(write_version(tmp_path / "1", 1, users=TABLE, **changes))


async def test_a_golden_answer_of_another_user_is_none(tmp_path: Path) -> None:
    swapped = TABLE[[0, 2, 1, *range(3, USERS + 1)]]

    def swap(folder: Path) -> None:
        models.write_model(folder / "model.onnx", embeddings_of(1), default_k=K, users=swapped)
        sign(folder)

    with pytest.raises(ModelError, match=r"for the history \[0\] of user 1 it ranks"):
        await loaded(write_version(tmp_path / "1", 1, users=TABLE, spoil=swap))


def test_a_model_without_a_card_says_in_its_metadata_how_many_users_it_takes(load: Load, tmp_path: Path) -> None:
    told = {"recommender.items": "50", "recommender.default_k": str(K), "recommender.max_k": str(K)}
    path = models.batched(tmp_path / "5_model.onnx", models.table(), users=TABLE, metadata=told)
    with pytest.raises(ModelError, match=r"nor its metadata recommender\.users says how many"):
        load(path)
    models.batched(path, models.table(), users=TABLE, metadata={**told, "recommender.users": str(USERS)})

    assert load(path).model.users == Users(USERS)


@pytest.mark.parametrize("options", [{}, {"bucketed": True}, {"slots": 2}])
async def test_rows_of_every_kind_share_a_run_on_every_way_through_the_engine(
    load: Load, tmp_path: Path, options: dict[str, Any]
) -> None:
    told = {"recommender.items": "50", "recommender.default_k": str(K), "recommender.users": str(USERS)}
    engine = load(models.batched(tmp_path / "5_model.onnx", models.table(), users=TABLE, metadata=told), **options)
    drawn = np.random.default_rng(5)
    queries = [
        Query(tuple(drawn.integers(0, 50, drawn.integers(0, 9)).tolist()), K, user=int(drawn.integers(0, USERS + 1)))
        for _ in range(40)
    ]
    for run in engine.ways:
        # A run of one row, and one without any history, have other shapes.
        for batch in (queries, queries[:3], [Query((), K, user=2)], [Query((), K, user=3), Query((), K)]):
            for query, ranking in zip(batch, await run(batch), strict=True):
                best, _ = models.brute_force(models.table(), query.history, K, TABLE[query.user])
                assert ranking.item_ids == best, query
