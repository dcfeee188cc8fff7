"""Networks that take features: how they are declared, what is exported of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.networks.features import read_features_file
from recommender.export.networks.load import load_network
from recommender.export.subject import Subject
from recommender.models.artifact import open_artifact
from recommender.models.card import Card, card_path
from recommender.models.checks import check_answers
from recommender.models.trials import check_histories, check_parity
from tests.support.engines import Load

ITEMS, SIZE = 40, 6


class Aged(nn.Module):
    """The mean of the history, and of an age and a town that it does not declare itself."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.items = nn.Embedding(ITEMS, SIZE, _weight=torch.randn((ITEMS, SIZE), generator=generator))
        self.towns = nn.Embedding(4, SIZE, _weight=torch.randn((4, SIZE), generator=generator))

    def forward(self, user_history: Tensor, history_length: Tensor, age: Tensor, town: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1])[None, :] < history_length[:, None]
        summed = (self.items(user_history) * real.unsqueeze(2)).sum(1)
        vectors: Tensor = summed / history_length.clamp(min=1).unsqueeze(1) * age.unsqueeze(1) + self.towns(town)
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.items.weight


class Moment(Aged):
    """Ranks by the age and the town alone."""

    feature_inputs: Mapping[str, Mapping[str, Any]] = {
        "age": {"type": "float32", "minimum": 1, "maximum": 9, "default": 2},
        "town": {"type": "int64", "minimum": 0, "maximum": 3, "default": 0},
    }

    def forward(self, age: Tensor, town: Tensor) -> Tensor:  # type: ignore[override]
        vectors: Tensor = self.towns(town) * age.unsqueeze(1)
        return vectors


TOWNS = ["ulm", "bonn", "köln"]
DECLARED: dict[str, dict[str, Any]] = {
    "age": {"type": "float32", "minimum": 1, "maximum": 9, "default": 2},
    "town": {"type": "string", "vocabulary": "towns.txt"},
}


def options(folder: Path, declared: object = DECLARED, **more: Any) -> ExportOptions:
    (folder / "towns.txt").write_text("".join(f"{town}\n" for town in TOWNS), encoding="utf-8")
    file = folder / "features.json"
    file.write_text(json.dumps(declared), encoding="utf-8")
    network = f"{__name__}:Aged"
    return ExportOptions(network=network, features=file, output=folder / "5_model.onnx", num_recommendations=5, **more)


def best(history: list[int], age: float, town: int) -> list[int]:
    network = Aged()
    with torch.no_grad():
        vector = network(
            torch.tensor([history]), torch.tensor([len(history)]), torch.tensor([age]), torch.tensor([town])
        )
        scores = (vector @ network.items.weight.T)[0].tolist()
    return sorted(range(ITEMS), key=lambda item: (-scores[item], item))[:5]


async def test_a_file_declares_features_and_parity_lines_have_them(tmp_path: Path, load: Load) -> None:
    lines = [
        ({"town": "bonn"}, 2.0, 2),
        ({"town": "nowhere", "age": 4.5}, 4.5, 0),
        ({"town": "köln", "age": 9}, 9.0, 3),
    ]
    parity = tmp_path / "parity.jsonl"
    parity.write_text(
        "".join(
            json.dumps({"history": [1, 5], "features": features, "recommendations": best([1, 5], age, town)}) + "\n"
            for features, age, town in lines
        ),
        encoding="utf-8",
    )
    told: list[str] = []
    path = export_model(options(tmp_path, parity=parity), tell=told.append)
    card = Card.model_validate_json(card_path(path).read_bytes())
    artifact = open_artifact(path)
    engine = load(path)
    await check_answers(engine, artifact)
    await check_parity(engine, artifact)
    await check_histories(engine, path)

    assert [feature.name for feature in card.features] == ["age", "town"]
    assert card.features[1].vocabulary == "5_model.town.tokens"
    assert {file.path: file.role for file in card.files}["5_model.town.tokens"] == "feature_vocabulary"
    assert [line.features for line in card.parity] == [{"town": 2}, {"town": 0, "age": 4.5}, {"town": 3, "age": 9.0}]
    assert "Features: age (float32, else 2), town (string of 3 tokens, needed)." in told

    parity.write_text(json.dumps({"history": [1], "features": {"twon": "ulm"}, "recommendations": [1]}))
    with pytest.raises(ExportError, match="line 1: its features are no object of the model's features"):
        export_model(options(tmp_path, parity=parity))
    parity.write_text(json.dumps({"history": [1], "features": {"town": 3}, "recommendations": [1]}))
    with pytest.raises(ExportError, match="3 is not a value of the feature town, which is string"):
        export_model(options(tmp_path, parity=parity))


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ({"age": DECLARED["age"]}, "Aged.forward takes town, which is neither an input of every model nor a declared"),
        ({**DECLARED, "sex": {"type": "bool"}}, "Aged has the feature sex, and its forward takes none of that name"),
        ({**DECLARED, "user": {"type": "int64"}}, "feature user has the name of an input that every model may have"),
        ([], "features are list; declare them in an object, by their names"),
        ({"age": 3}, 'feature age is 3; say what it is, as {"type": "float32", "default": 0}'),
        ({"age": {"type": "float32", "defualt": 0}}, "feature age has 'defualt'; give default, first_token, maximum"),
        ({"age": {"type": "double"}}, "feature age: type: Input should be 'int64', 'float32', 'bool' or 'string'"),
        ({"age": {"type": "float32", "default": "x"}}, "feature age: its default 'x' is not of its type float32"),
        ({"age": {"type": "float32", "default": [1, 2]}}, "feature age: its default is not a list of its width"),
        ({"town": {"type": "string"}}, "feature town: a vocabulary and the number of its tokens go with"),
        ({"town": {"type": "string", "tokens": ["a", "a"]}}, "feature town: 'a' among its tokens is not a string"),
        ({"town": {"type": "string", "tokens": ["a"], "vocabulary": "x"}}, "feature town: give its strings once"),
        ({"town": {"type": "string", "vocabulary": "none.txt"}}, "none.txt cannot be read: No such file"),
    ],
)  # fmt: skip
def test_declarations_that_do_not_fit_are_refused_with_a_sentence(
    tmp_path: Path, declared: object, sentence: str
) -> None:
    chosen = options(tmp_path, declared)
    with pytest.raises(ExportError) as refused:
        Subject.of(load_network(chosen), chosen)
    assert sentence in str(refused.value)


def test_a_network_without_a_history_is_checked_without_one() -> None:
    subject = Subject.of(Moment())
    histories, beside = subject.checked([[1, 2], [3]])

    assert not subject.reads_history
    assert histories == [[1, 2], [3], []]
    assert {name: len(values) for name, values in beside.items()} == {"age": 3, "town": 3}
    assert subject.truth(histories, beside).scores.shape == (3, ITEMS)


def test_a_network_and_a_file_do_not_both_declare_features(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text("{}", encoding="utf-8")
    chosen = ExportOptions(network="two-tower", features=tmp_path / "features.json", items=30, dim=4)
    with pytest.raises(ExportError, match="TwoTower has feature_inputs, and --features declares features too"):
        Subject.of(load_network(chosen), chosen)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text("{", encoding="utf-8")
    with pytest.raises(ExportError, match=r"features\.json cannot be read: .*; give a JSON object of features by name"):
        read_features_file(tmp_path / "features.json", tmp_path / "model.onnx")


async def test_the_two_tower_network_is_exported_with_its_golden_answers(tmp_path: Path, load: Load) -> None:
    path = export_model(ExportOptions(network="two-tower", items=60, dim=8, output=tmp_path / "10_model.onnx"))
    card = Card.model_validate_json(card_path(path).read_bytes())
    await check_answers(load(path), open_artifact(path))

    assert [feature.name for feature in card.features] == ["age", "country", "subscriber", "interests"]
    assert card.users is not None
    assert not card.reads_history
    assert any(not golden.item_ids and golden.user for golden in card.golden)
    assert {tuple(golden.features) for golden in card.golden} == {("age", "country", "subscriber", "interests")}
