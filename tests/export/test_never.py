"""The never-recommend list, and tolerances that one absurd number does not widen."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.check import ModelFile
from recommender.export.networks.network import real_items
from recommender.export.subject import Subject
from recommender.export.ties import check_ties
from recommender.models.card import Card, card_path

ITEMS = 60
NEVER = (0, 7, 59)


class Mean(nn.Module):
    """The mean of a history's embeddings, with a bias for each item."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(ITEMS, 6)
        self.bias = bias

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        weights = real_items(user_history, history_length).to(torch.float32)
        summed: Tensor = (weights.unsqueeze(1) @ self.table(user_history)).squeeze(1)
        return summed / history_length.unsqueeze(1)

    def item_embeddings(self) -> Tensor:
        return self.table.weight

    def item_bias(self) -> Tensor:
        return self.bias


class Scores(Mean):
    """The same, which yields the scores of all items itself."""

    item_embeddings = None  # type: ignore[assignment]

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        scores: Tensor = super().forward(user_history, history_length) @ self.table.weight.T
        return scores


class LooksAtPadding(Mean):
    """Takes the padding for items."""

    def forward(self, user_history: Tensor, _: Tensor) -> Tensor:
        looked_up: Tensor = self.table(user_history)
        return looked_up.mean(dim=1)


def zeros(value: float = 0.0, *items: int) -> Tensor:
    bias = torch.zeros(ITEMS)
    bias[list(items)] = value
    return bias


def barred_by_bias() -> nn.Module:
    return Mean(zeros(-torch.inf, *NEVER))


class BarredByName(Mean):
    """Names its items itself."""

    def never_recommended_items(self) -> Tensor:
        return torch.tensor(NEVER)


def scores() -> nn.Module:
    return Scores(zeros())


def one_far_below() -> nn.Module:
    return Mean(zeros(-1e9, 8))


def one_far_below_and_padding_counts() -> nn.Module:
    return LooksAtPadding(zeros(-1e9, 8))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])


def export(network: str, folder: Path, *listed: int, **more: object) -> tuple[ModelFile, Card]:
    if listed:
        more["never_recommend"] = folder / "never.txt"
        (folder / "never.txt").write_text("".join(f"{item}\n" for item in listed))
    options = ExportOptions(network=f"own:{network}", output=folder / "10_model.onnx", **more)  # type: ignore[arg-type]
    path = export_model(options)
    return ModelFile(path), Card.model_validate_json(card_path(path).read_text())


@pytest.mark.parametrize("way", ["barred_by_bias", "one far below and a list", "scores and a list"])
def test_what_is_never_recommended_does_not_come_back(way: str, tmp_path: Path) -> None:
    network, _, listed = way.partition(" and ")
    model, card = export(network.replace(" ", "_"), tmp_path, *(NEVER if listed else ()))

    assert card.score_tolerance < 1e-3
    assert card.never_recommended == NEVER
    assert card.max_k == ITEMS - len(NEVER)
    for rank in (
        model.rank([[7], [0, 59]], card.max_k),
        model.rank([[7], [0, 59]], card.max_k, [(0, 3)]),
        model.rank([[7], [0, 59]], 10, [], [[0, 1, 7], [7, 59]]),
    ):
        assert not np.isin(rank.ids, NEVER).any()
        assert np.isneginf(rank.scores[rank.ids < 0]).all()
    alone = model.rank([[7]], card.max_k).ids[0]
    assert sorted(alone.tolist()) == [item for item in range(ITEMS) if item not in NEVER]
    if network == "one far below":
        assert alone[-1] == 8
    assert model.rank([[1]], 10, [], [[0, 1, 7]]).ids[0].tolist() == [1] + [-1] * 9


class ReadsMore(nn.Module):
    """Reads more items, or fewer, than it recommends."""

    def __init__(self, history_items: int) -> None:
        super().__init__()
        self.history_items = history_items
        self.table = nn.Embedding(history_items, 6)
        self.items = nn.Embedding(ITEMS, 6)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        weights = real_items(user_history, history_length).to(torch.float32)
        vectors: Tensor = (weights.unsqueeze(1) @ self.table(user_history)).squeeze(1)
        return vectors

    def item_embeddings(self) -> Tensor:
        weight: Tensor = self.items.weight
        return weight


def reads_more() -> nn.Module:
    return ReadsMore(ITEMS + 10)


def test_items_that_only_histories_hold_are_read_and_told_in_the_card(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("".join(f"key {item}\n" for item in range(ITEMS + 10)))
    model, card = export("reads_more", tmp_path, vocabulary=tmp_path / "keys.txt")

    assert (card.items, card.history_items) == (ITEMS, ITEMS + 10)
    assert (model.rank([[ITEMS + 9]], 10).ids >= 0).all()


def test_a_network_that_reads_fewer_items_than_it_recommends_is_tried_on_those() -> None:
    assert Subject.of(ReadsMore(ITEMS - 20)).truth([[0, ITEMS - 21], [3]]).scores.shape == (2, ITEMS)


@pytest.mark.parametrize(("items", "coarse"), [(33, False), (5_003, False), (65_537, False), (20_001, True)])
def test_ties_are_right_beside_items_that_are_never_recommended(items: int, *, coarse: bool) -> None:
    check_ties(items, 9, min(items, 100), bias=True, coarse=coarse, never=True)


def test_a_network_may_name_the_items_itself() -> None:
    assert Subject.of(BarredByName(zeros(-torch.inf, 3))).never == (0, 3, 7, 59)


def test_a_wrong_answer_is_not_excused_by_an_item_far_below(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"The padding changes what LooksAtPadding yields.*--padding-id"):
        export("one_far_below_and_padding_counts", tmp_path)


@pytest.mark.parametrize(
    ("network", "listed", "more", "sentence"),
    [
        ("barred_by_bias", (), {"num_recommendations": 58}, "only 57 of the 60 items may be recommended"),
        ("one_far_below", (60,), {}, "'60' is not an item id from 0 to 59"),
    ],
)
def test_a_list_that_cannot_be_kept_is_refused(
    network: str, listed: tuple[int, ...], more: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(network, tmp_path, *listed, **more)


def test_a_fallback_list_that_holds_such_an_item_is_refused(tmp_path: Path) -> None:
    (tmp_path / "popular.txt").write_text("3\n7\n")
    with pytest.raises(ExportError, match="The fallback list holds item 7, which is never recommended"):
        export("barred_by_bias", tmp_path, fallback=tmp_path / "popular.txt")
