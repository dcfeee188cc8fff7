"""The reference model: what a fresh export answers, and what it says about itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.check import ModelFile, difference
from recommender.export.truth import brute_force, masked
from recommender.models.card import Card, card_path

FACTS = {
    (1, 2, 3, 4): (5510, 1021, 9640, 1682, 2544, 3281, 874, 8599, 3572, 2766),
    (0,): (3281, 5510, 9714, 6790, 2354, 6067, 4473, 831, 8727, 3470),
    (9999, 999, 99): (5510, 1682, 1021, 9640, 3426, 3281, 4982, 8274, 8599, 5884),
}
HISTORIES = [[1, 2, 3, 4], [0], [7, 7, 7, 8], list(range(200)), [9999, 999, 99]]
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(ExportOptions(output=tmp_path_factory.mktemp("weights") / "10_model.onnx"))


@pytest.fixture(scope="module")
def model(path: Path) -> ModelFile:
    return ModelFile(path)


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    torch.manual_seed(0)
    table = torch.rand((10_000, 32)).numpy()
    return np.stack([table[history].mean(axis=0, dtype=np.float32) @ table.T for history in HISTORIES])


def test_answers_the_known_facts_in_order(model: ModelFile) -> None:
    for history, ids in FACTS.items():
        assert tuple(model.rank([history], 10).ids[0].tolist()) == ids


def test_answers_the_same_batched_ragged_and_alone(model: ModelFile, scores: np.ndarray) -> None:
    together = model.rank(HISTORIES, 10)
    assert difference(together, scores, 10, TOLERANCE) is None
    for row, history in enumerate(HISTORIES):
        assert difference(model.rank([history], 10), scores[[row]], 10, TOLERANCE) is None


@pytest.mark.parametrize("k", [1, 5, 39, 40, 312, 1000])
def test_serves_every_number_up_to_max_k(model: ModelFile, scores: np.ndarray, k: int) -> None:
    assert difference(model.rank(HISTORIES, k), scores, k, TOLERANCE) is None


def test_an_item_that_repeats_counts_as_often_as_it_occurs(model: ModelFile) -> None:
    once, thrice = model.rank([[7, 8]], 10), model.rank([[7, 7, 7, 8]], 10)
    assert not np.array_equal(once.scores, thrice.scores)


def test_padding_is_what_the_length_says_and_not_what_the_id_says(model: ModelFile) -> None:
    assert not np.array_equal(model.rank([[5, 0]], 10).scores, model.rank([[5], [5, 0]], 10).scores[:1])


@pytest.mark.parametrize("k", [10, 500])
def test_excluded_items_are_passed_over_in_their_own_row_only(model: ModelFile, scores: np.ndarray, k: int) -> None:
    best = brute_force(scores, 400).ids
    excluded = [(0, int(item)) for item in best[0]] + [(3, int(item)) for item in best[3, :3]] + [(3, 9_999)]
    got = model.rank(HISTORIES, k, excluded)
    assert difference(got, masked(scores, excluded, None), k, TOLERANCE) is None


def test_a_row_without_items_left_is_filled_with_minus_one(model: ModelFile) -> None:
    got = model.rank([[1], [2]], 1000, [(0, item) for item in range(9_990)])
    assert sorted(got.ids[0, :10].tolist()) == list(range(9_990, 10_000))
    assert (got.ids[0, 10:] == -1).all()
    assert np.isneginf(got.scores[0, 10:]).all()
    assert (got.ids[1] >= 0).all()


def test_candidates_are_ranked_and_nothing_else(model: ModelFile, scores: np.ndarray) -> None:
    candidates = [[3], [0, 1, 2], list(range(0, 10_000, 3)), [9_999], list(range(50))]
    got = model.rank(HISTORIES, 10, (), candidates)
    assert difference(got, masked(scores, (), candidates), 10, TOLERANCE) is None


def test_excluded_items_are_no_candidates(model: ModelFile, scores: np.ndarray) -> None:
    candidates = [[3], [0, 1, 2], list(range(0, 10_000, 3)), [9_999], list(range(50))]
    excluded = [(0, 3), (1, 0), (1, 2), (2, 9_999), (2, 1), (4, 49), (4, 50), (4, 9_999)]
    got = model.rank(HISTORIES, 10, excluded, candidates)
    assert difference(got, masked(scores, excluded, candidates), 10, TOLERANCE) is None


def test_the_table_stands_once_in_the_file(path: Path) -> None:
    assert path.stat().st_size < 1_500_000
    large = [tensor for tensor in onnx.load(path).graph.initializer if tensor.ByteSize() > 100_000]
    assert len(large) == 1


def test_the_file_holds_nothing_of_the_machine_it_was_made_on(path: Path) -> None:
    content = path.read_bytes()
    assert b"/site-packages/" not in content
    assert str(Path.home()).encode() + b"/" not in content


def test_the_card_and_the_file_tell_the_same(path: Path, model: ModelFile) -> None:
    card = Card.model_validate_json(card_path(path).read_text())
    told = {prop.key.removeprefix("recommender."): prop.value for prop in onnx.load(path).metadata_props}
    for key in ("name", "version", "network", "items", "embedding_size", "default_k", "max_k", "score_tolerance"):
        assert str(getattr(card, key)) == told[key] or float(told[key]) == getattr(card, key)
    assert told["longest_history"] == ""
    assert card.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for golden in card.golden:
        assert tuple(model.rank([golden.item_ids], card.default_k).ids[0].tolist()) == golden.recommendations
    assert FACTS.items() <= {golden.item_ids: golden.recommendations for golden in card.golden}.items()


def test_progress_names_its_stages_and_ends_at_one(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    options = ExportOptions(items=50, dim=4, output=tmp_path / "m.onnx")
    export_model(options, lambda stage, share: told.append((stage, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(stage for stage, _ in told)


@pytest.mark.parametrize("items", [1, *(pytest.param(items, marks=pytest.mark.slow) for items in (31, 32, 1_000)), 33])
def test_small_catalogues_are_served_whole(tmp_path: Path, items: int) -> None:
    path = export_model(ExportOptions(items=items, dim=3, num_recommendations=1, output=tmp_path / "1_model.onnx"))
    assert sorted(ModelFile(path).rank([[0]], items).ids[0].tolist()) == list(range(items))
    assert json.loads(card_path(path).read_text())["max_k"] == items


def test_a_number_above_the_catalogue_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"num_recommendations is 10, but the catalogue has 9 items; give at most 9\."
    ):
        export_model(ExportOptions(items=9, output=tmp_path / "10_model.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExportOptions(items=50, dim=4, output=tmp_path / "10_model.onnx")
    path = export_model(options)
    before = path.read_bytes()
    monkeypatch.setattr("recommender.export.exporter.pack", _table_of_another_model)
    with pytest.raises(ExportError, match="does not answer as the torch network does"):
        export_model(options)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"10_model.onnx", "10_model.card.json"}


def _table_of_another_model(embeddings: np.ndarray, bias: None, layout: object) -> np.ndarray:
    from recommender.export.table import pack  # noqa: PLC0415 the real one, which the test has replaced elsewhere

    return pack(embeddings[::-1].copy(), bias, layout)  # type: ignore[arg-type]
