"""`recommender models card`: any ONNX file of the contract gets a card, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recommender.cli.models import app
from recommender.models.artifact import open_artifact
from recommender.models.card import CardTimes, CardTypes, CardUsers, card_path
from tests.support import models
from tests.support.feature_models import CITIES, DECLARED, add_features, vector_of

ITEMS = 50
KEPT = {"type", "width", "default", "minimum", "maximum"}
"""Fields of a card's feature that a declaration has too."""


def card(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["card", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return models.batched(tmp_path / "plain.onnx", models.table(ITEMS))


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(f"{value}\n" for value in values), encoding="utf-8")
    return path


def test_a_plain_file_gets_its_card_its_keys_and_its_lists(plain: Path, tmp_path: Path) -> None:
    keys = lines(tmp_path / "keys.txt", *(f"sku-{item}" for item in range(ITEMS)))
    ranked = [f"sku-{item}" for item in models.brute_force(models.table(ITEMS), [1, 2], 5)[0]]
    parity = lines(tmp_path / "p.jsonl", json.dumps({"history": ["sku-1", "sku-2"], "recommendations": ranked}))
    code, told = card(
        plain, "--items", ITEMS, "--default-k", 5, "--max-k", 20, "--name", "shop", "--vocabulary", keys,
        "--fallback", lines(tmp_path / "popular.txt", "sku-3"), "--parity", parity,
    )  # fmt: skip

    assert code == 0, told
    assert "shop@1 may serve" in told
    artifact = open_artifact(plain)
    assert artifact.card is not None
    assert (artifact.card.items, artifact.card.default_k, artifact.card.max_k, artifact.card.opset) == (50, 5, 20, 18)
    assert [file.role for file in artifact.card.files] == ["model", "vocabulary", "fallback"]
    assert len(artifact.card.golden) == 3
    assert 0 < artifact.card.score_tolerance < 1e-3
    assert artifact.card.parity[0].item_ids == (1, 2)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "give --items"),
        (("--items", ITEMS + 1), "loads but does not run"),
        (("--items", ITEMS, "--never-recommend", "never.txt"), "never-recommend list"),
        (("--items", ITEMS, "--sorted-times"), "has no input history_times"),
    ],
)
def test_a_file_that_may_not_serve_is_left_without_a_card(
    more: tuple[object, ...], sentence: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "never.txt", *models.brute_force(models.table(ITEMS), [ITEMS - 1], 2)[0])
    code, told = card(plain, "--default-k", 5, *more)

    assert code == 2
    assert sentence in told
    assert not card_path(plain).exists()


def test_a_file_that_takes_users_gets_them_into_its_card(tmp_path: Path) -> None:
    table = np.random.default_rng(3).normal(0, 2, (5, 8)).astype(np.float32)
    file = models.batched(tmp_path / "users.onnx", models.table(ITEMS), users=table)
    best = models.brute_force(models.table(ITEMS), [], 5, table[2])[0]
    parity = lines(tmp_path / "p.jsonl", json.dumps({"user": "bert", "history": [], "recommendations": best}))
    keys = lines(tmp_path / "users.txt", "anna", "bert", "cleo", "dora")
    sizes = ("--items", ITEMS, "--default-k", 5, "--max-k", 20)
    refused, sentence = card(file, *sizes)
    code, told = card(
        file, *sizes, "--users", 4, "--unknown-user", "history", "--user-vocabulary", keys, "--parity", parity
    )

    assert (refused, code) == (2, 0), told
    assert "nor its metadata recommender.users says how many" in " ".join(sentence.split())
    artifact = open_artifact(file)
    assert artifact.card is not None
    assert artifact.card.users == CardUsers(count=4, unknown="history")
    assert artifact.user_vocabulary == tmp_path / "users.users"
    assert [expected.user for expected in artifact.card.parity] == [2]
    assert any(golden.user and not golden.item_ids for golden in artifact.card.golden)


def test_a_file_that_reads_types_and_times_gets_them_into_its_card(tmp_path: Path) -> None:
    table = np.random.default_rng(3).normal(0, 2, (4, 8)).astype(np.float32)
    file = models.batched(tmp_path / "events.onnx", models.table(ITEMS), types=table, timed=True)
    best = models.brute_force(models.table(ITEMS), [1, 2], 5, of_types=table[[3, 1]], times=[7, 9 * 10**12])[0]
    line = {"history": [1, 2], "history_types": ["sold", 1], "history_times": [7, 9 * 10**12], "recommendations": best}
    parity = lines(tmp_path / "p.jsonl", json.dumps(line))
    untyped = lines(tmp_path / "q.jsonl", json.dumps({**line, "history_types": []}))
    keys = lines(tmp_path / "types.txt", "view", "cart", "sold")
    sizes = ("--items", ITEMS, "--default-k", 5, "--max-k", 20)
    refused, sentence = card(file, *sizes)
    lacking, reason = card(file, *sizes, "--types", 3, "--parity", untyped)
    words = ("--types", 3, "--unknown-type", 0, "--type-vocabulary", keys, "--default-time", 5, "--sorted-times")
    code, told = card(file, *sizes, *words, "--parity", parity)

    assert (refused, lacking, code) == (2, 2, 0), told
    assert "nor its metadata recommender.history_types says how many" in " ".join(sentence.split())
    assert "it lacks history_types, for which the model has no default" in " ".join(reason.split())
    artifact = open_artifact(file)
    assert artifact.card is not None
    assert artifact.card.history_types == CardTypes(count=3, unknown=0)
    assert artifact.card.history_times == CardTimes(default=5, sorted_times=True)
    assert artifact.type_vocabulary == tmp_path / "events.types"
    assert [expected.history_types for expected in artifact.card.parity] == [(3, 1)]
    for golden in artifact.card.golden:
        assert len(golden.history_types) == len(golden.history_times) == len(golden.item_ids)
        assert list(golden.history_times) == sorted(golden.history_times)


def test_a_file_that_takes_features_gets_them_into_its_card(tmp_path: Path) -> None:
    users = np.random.default_rng(3).normal(0, 1, (5, 8)).astype(np.float32)
    file = models.batched(tmp_path / "shop.onnx", models.table(ITEMS), users=users)
    add_features(file).unlink()
    given = {"city": "köln", "level": 2, "tastes": [1.0, 3.0]}
    best = models.brute_force(models.table(ITEMS), [1, 2], 5, users[0] + vector_of(given))[0]
    line = {"history": [1, 2], "features": given, "recommendations": best}
    parity = lines(tmp_path / "p.jsonl", json.dumps(line))
    lacking = lines(tmp_path / "q.jsonl", json.dumps({**line, "features": {"city": "köln"}}))
    lines(tmp_path / "cities.txt", *CITIES)
    declared = {each["name"]: {key: each[key] for key in each.keys() & KEPT} for each in DECLARED}
    del declared["level"]["default"]
    declared["city"]["vocabulary"] = "cities.txt"
    file_of_features = lines(tmp_path / "features.json", json.dumps(declared))
    sizes = ("--items", ITEMS, "--default-k", 5, "--max-k", 20, "--users", 4)
    refused, sentence = card(file, *sizes)
    short, reason = card(file, *sizes, "--features", file_of_features, "--parity", lacking)
    code, told = card(file, *sizes, "--features", file_of_features, "--parity", parity)

    assert (refused, short, code) == (2, 2, 0), told
    assert "input age is unknown: the contract does not have it" in " ".join(sentence.split())
    assert "it lacks the feature level, for which the model has no default" in " ".join(reason.split())
    artifact = open_artifact(file)
    assert artifact.card is not None
    assert [each.name for each in artifact.card.features] == [each["name"] for each in DECLARED]
    assert artifact.feature_vocabulary("shop.city.tokens") == tmp_path / "shop.city.tokens"
    assert [each.features for each in artifact.card.parity] == [{"city": 3, "level": 2, "tastes": (1.0, 3.0)}]
    assert {tuple(golden.features) for golden in artifact.card.golden} == {tuple(declared)}
    verified = CliRunner().invoke(app, ["verify", str(file)], env={"COLUMNS": "200"}).output
    assert "age, city (3 tokens), level (needed), premium, tastes" in verified
