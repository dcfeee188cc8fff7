"""Tables in a file of their own: with a small limit always, for real where there are gigabytes to spare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recommender.export import ExportOptions, export_model
from recommender.export.check import ModelFile
from recommender.models.card import Card, card_path, file_sha256


def test_a_table_over_the_limit_stands_in_its_own_file_and_answers_the_same(tmp_path: Path) -> None:
    inside = export_model(ExportOptions(items=3_000, dim=8, output=tmp_path / "inside" / "10_model.onnx"))
    beside = export_model(
        ExportOptions(items=3_000, dim=8, output=tmp_path / "beside" / "10_model.onnx", external_data_bytes=1_000)
    )
    assert {file.name for file in beside.parent.iterdir()} == {
        "10_model.onnx",
        "10_model.onnx.data",
        "10_model.card.json",
    }
    assert beside.stat().st_size < 30_000
    one, other = (ModelFile(path).rank([[1, 2], [3]], 50) for path in (inside, beside))
    assert np.array_equal(one.ids, other.ids)
    card = Card.model_validate_json(card_path(beside).read_text())
    assert [(file.path, file.role) for file in card.files] == [
        ("10_model.onnx", "model"),
        ("10_model.onnx.data", "external_data"),
    ]
    for file in card.files:
        assert (file.size, file.sha256) == (
            (beside.parent / file.path).stat().st_size,
            file_sha256(beside.parent / file.path),
        )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_table_over_two_gigabytes_is_exported_and_served(tmp_path: Path) -> None:
    items, dim = 9_000_000, 64
    path = export_model(ExportOptions(items=items, dim=dim, output=tmp_path / "10_model.onnx"))
    assert (tmp_path / "10_model.onnx.data").stat().st_size > 1 << 31
    card = Card.model_validate_json(card_path(path).read_text())
    model = ModelFile(path)
    for golden in card.golden:
        assert tuple(model.rank([golden.item_ids], 10).ids[0].tolist()) == golden.recommendations
