"""Tables in separate files: with a small limit always, with gigabytes only in the long tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recommender.engine.onnx_file import read_onnx_file
from recommender.export import ExportOptions, export_model
from recommender.export.check import ModelFile
from recommender.models.artifact import open_artifact
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


class Shifted(nn.Module):
    """A network whose table begins with a row for padding and ends with one for a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1 + 3_000 + 1, 8)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1]) < history_length[:, None]
        rows = self.table(torch.where(real, user_history + 1, 0))
        masked = functional.pad(torch.zeros_like(user_history), (0, 1), value=3_001)[:, -1:]
        vectors: Tensor = (rows * real[:, :, None]).sum(dim=1) + self.table(masked)[:, 0]
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.table.weight[1:-1]


class TwoTables(nn.Module):
    """A network that reads histories from another table than it recommends from."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.items = nn.Embedding(40_000, 8), nn.Embedding(40_000, 8)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1]) < history_length[:, None]
        vectors: Tensor = (self.table(user_history) * real[:, :, None]).sum(dim=1)
        return vectors

    def item_embeddings(self) -> Tensor:
        weight: Tensor = self.items.weight
        return weight


def test_a_table_with_rows_for_padding_and_a_mask_stands_once_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])

    path = export_model(ExportOptions(network="own:Shifted", output=tmp_path / "10_model.onnx"))

    assert path.stat().st_size < 1.7 * 3_000 * 8 * 4


def test_two_tables_stand_beside_the_model_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])
    told: list[str] = []

    options = ExportOptions(network="own:TwoTables", output=tmp_path / "10_model.onnx", external_data_bytes=2_000_000)
    path = export_model(options, tell=told.append)

    size = (tmp_path / "10_model.onnx.data").stat().st_size
    assert path.stat().st_size < 100_000
    assert 0 <= size - 2 * 40_000 * 8 * 4 < 10_000
    assert f"10_model.onnx.data ({size:,} bytes)" in told[0]
    assert open_artifact(path).card is not None
    read_onnx_file(path).check_tables()
