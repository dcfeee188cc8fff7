"""Versions that take features: what their cards and files must say, and what their checks find."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recommender.domain import Feature, Query
from recommender.errors import ModelError
from recommender.models.artifact import Release, open_artifact, open_version
from recommender.models.features import in_order
from recommender.models.loader import loader
from recommender.models.proof import Proof
from recommender.models.version import Version
from recommender.settings.settings import Settings
from tests.support.engines import Load
from tests.support.feature_models import CITIES, DECLARED, vector_of
from tests.support.models import brute_force
from tests.support.versions import K, embeddings_of, write_version

USERS = np.random.default_rng(3).normal(0, 1, (7, 8)).astype(np.float32)


async def loaded(folder: Path) -> tuple[Version, Proof]:
    artifact = open_version(folder, Release("shop", folder.name))
    version = await loader(Settings(num_recommendations=K)).load(artifact)
    await version.batcher.close()
    version.close_engine()
    return version, Proof.of(version, artifact)


async def test_a_version_with_features_is_proven(tmp_path: Path) -> None:
    version, proof = await loaded(write_version(tmp_path / "1", 1, users=USERS, featured=True))

    assert version.model.features == (
        Feature("age", "float", None, 30.0, 0.0, 120.0),
        Feature("city", "string", None, 2, 0, 3),
        Feature("level", "int64", None, 1, 0, 2),
        Feature("premium", "bool", None, default=False),
        Feature("tastes", "float", 2, (0.5, -1.0)),
    )
    assert version.tokens["city"].numbers([*CITIES, "nowhere"]) == [1, 2, 3, 0]
    assert (proof.features, proof.golden) == (5, 3)


def changed(name: str, **changes: Any) -> Mapping[str, Any]:
    return {"features": [{**each, **changes} if each["name"] == name else each for each in DECLARED]}


def without(name: str) -> Mapping[str, Any]:
    return {"features": [each for each in DECLARED if each["name"] != name]}


def unlisted(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["files"] = [each for each in card["files"] if each["role"] != "feature_vocabulary"]
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


def in_the_card(change: Callable[[dict[str, Any]], None]) -> Mapping[str, Any]:
    def spoil(folder: Path) -> None:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        change(card)
        (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")

    return {"spoil": spoil}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (without("premium"), "input premium is unknown: the contract does not have it, and no card declares it"),
        (
            {"features": [*DECLARED, {"name": "x", "type": "bool"}]},
            "the card declares a feature x, which the model does not have",
        ),
        (
            changed("age", type="int64", default=30, minimum=0, maximum=99),
            r"input age is tensor\(float\) of rank 1, and",
        ),
        (changed("age", width=2, default=None), r"tensor\(float\) of rank 1, and .* tensor\(float\) of rank 2"),
        (changed("tastes", width=3, default=None), "input tastes has 2 values a row, and the card declares 3"),
        (changed("city", tokens=2), "has 3 keys and the card 2 tokens: every token needs one"),
        (changed("city", first_token=2), "does not give its card's answer"),
        (changed("level", maximum=3), "loads but does not run"),
        ({"spoil": unlisted}, "has the vocabulary 'model.city', which is not among its files"),
        ({"features": [*DECLARED, DECLARED[0]]}, "the card declares a feature age, a name that is taken already"),
        (
            {"features": [*DECLARED, {"name": "k", "type": "bool"}]},
            "the card declares a feature k, a name that is taken",
        ),
        (in_the_card(lambda card: card["golden"][0]["features"].update(level=0, age=90.0)), "does not give its card's"),
        (in_the_card(lambda card: card["golden"][0]["features"].update(colour=1)), "has the feature colour, which"),
        (in_the_card(lambda card: card["features"][0].update(default="x")), "its default 'x' is not of its type"),
        (
            in_the_card(lambda card: card["features"][0].update(maximum=10**400)),
            "its bounds are not of its type float32",
        ),
        (in_the_card(lambda card: card["features"][0].update(default=121)), "its default 121 is outside its bounds"),
        (in_the_card(lambda card: card["features"][0].update(minimum=150)), r"minimum 150.* is above its maximum 120"),
        (in_the_card(lambda card: card["features"][1].update(vocabulary=None)), "a vocabulary and the number of its"),
        (in_the_card(lambda card: card["features"][2].update(default=True)), "its default True is not of its type"),
        (in_the_card(lambda card: card["features"][3].update(maximum=1)), "minimum and maximum bound numbers"),
        (in_the_card(lambda card: card["features"][4].update(default=[0.5])), "its default is not a list of its width"),
    ],
)
async def test_a_version_whose_features_are_not_what_its_card_says_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        await loaded(write_version(tmp_path / "1", 1, users=USERS, featured=True, **changes))


@pytest.mark.parametrize("options", [{}, {"bucketed": True}, {"slots": 2}])
async def test_rows_with_and_without_features_share_a_run_on_every_way_through_the_engine(
    load: Load, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = write_version(tmp_path / "1", 1, users=USERS, featured=True)
    engine = load(open_artifact(folder / "model.onnx").path, **options)
    given: list[dict[str, Any]] = [
        {},
        {"age": 60.0},
        {"city": 3, "premium": True},
        {"level": 0, "tastes": (4.0, 4.0)},
        {},
    ]
    rows = [({**each}, row % 7) for row, each in enumerate(given * 9)]
    queries = [
        Query((row,), K, user=user, features=in_order(engine.model.features, each))
        for row, (each, user) in enumerate(rows)
    ]
    for run in engine.ways:
        for batch in (range(45), range(3), range(2, 3)):
            for place, ranking in zip(batch, await run([queries[place] for place in batch]), strict=True):
                each, user = rows[place]
                words = each | ({"city": CITIES[each["city"] - 1]} if "city" in each else {})
                expected = brute_force(embeddings_of(1), queries[place].history, K, USERS[user] + vector_of(words))
                assert ranking.item_ids == expected[0]


async def test_a_value_that_the_model_has_no_row_for_fails_alone(tmp_path: Path) -> None:
    unbounded = changed("level", minimum=None, maximum=None)
    folder = write_version(tmp_path / "1", 1, users=USERS, featured=True, **unbounded)
    version = await loader(Settings(num_recommendations=K)).load(open_version(folder, Release("shop", "1")))
    features = [in_order(version.model.features, {"level": level}) for level in (0, 9, 2)]
    outcomes = await version.batcher.submit_many([Query((1,), K, features=each) for each in features])
    await version.batcher.close()
    version.close_engine()

    assert [getattr(outcome, "item_ids", str(outcome)) for outcome in outcomes] == [
        brute_force(embeddings_of(1), (1,), K, USERS[0] + vector_of({"level": 0}))[0],
        "features: model shop@1 has no row for one of their values",
        brute_force(embeddings_of(1), (1,), K, USERS[0] + vector_of({"level": 2}))[0],
    ]
