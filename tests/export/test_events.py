"""Networks that read types and times of histories: what is exported of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.check import ModelFile, difference
from recommender.export.networks.load import load_network
from recommender.export.networks.tisasrec import intervals
from recommender.models.card import Card, CardTimes, CardTypes, card_path
from tests.support.event_networks import ITEMS, LONGEST, PADDING, SIZE, TYPES, Careless, Counting, Leftward, Shopper

KEYS = "view\ncart\nbought\n"
HISTORIES = [[1, 2, 3], [5], [59, 58, 1, 1, 0, 7]]
TIMES = np.array([[5, 10**12, 10**12 + 1, 9, 9, 9], [7, 0, 0, 0, 0, 0], [8, 7, 6, 9, 10**13, 3]])
KINDS = np.array([[1, 2, 3, 9, 9, 9], [3, 0, 0, 0, 0, 0], [0, 1, 2, 3, 1, 2]])


class Neither(nn.Module):
    """Says that it knows types, and takes none."""

    known_types = TYPES

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, SIZE)

    def forward(self, user_history: torch.Tensor, history_length: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.items(user_history[:, 0]) * history_length[:, None]
        return vectors

    def item_embeddings(self) -> torch.Tensor:
        return self.items.weight


class Untold(Counting):
    """Says nowhere how many types it knows."""

    known_types = None  # type: ignore[assignment]


def exported(folder: Path, network: type[nn.Module] | str, **options: Any) -> tuple[Path, Card]:
    word = network if isinstance(network, str) else f"{network.__module__}:{network.__name__}"
    path = export_model(ExportOptions(network=word, output=folder / "10_model.onnx", **options))
    return path, Card.model_validate_json(card_path(path).read_bytes())


def scores_of(network: Any, history: list[int], **beside: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    given = {name: torch.from_numpy(values[None, : len(history)].copy()) for name, values in beside.items()}
    with torch.no_grad():
        vector = network(user_history=torch.tensor([history]), history_length=torch.tensor([len(history)]), **given)
        scores = (vector @ network.item_embeddings().T)[0].numpy()
    return np.asarray(scores, np.float32)


def test_the_reference_network_with_times_answers_as_in_torch_alone_and_in_company(tmp_path: Path) -> None:
    sizes = {"items": ITEMS, "dim": SIZE, "layers": 1, "heads": 2, "longest_history": LONGEST}
    path, card = exported(tmp_path, "tisasrec", **sizes)
    network = load_network(ExportOptions(network="tisasrec", **sizes))  # type: ignore[arg-type]
    expected = np.stack(
        [scores_of(network, history, history_times=TIMES[row]) for row, history in enumerate(HISTORIES)]
    )
    file = ModelFile(path)

    assert card.history_times == CardTimes(default=0)
    assert card.history_types is None
    assert all(len(golden.history_times) == len(golden.item_ids) for golden in card.golden)
    assert difference(file.rank(HISTORIES, 10, beside={"history_times": TIMES}), expected, 10, 1e-4) is None
    for row, history in enumerate(HISTORIES):
        alone = file.rank([history], 10, beside={"history_times": TIMES[[row]]})
        assert difference(alone, expected[[row]], 10, 1e-4) is None


def test_intervals_are_counted_in_units_of_the_shortest_one() -> None:
    times = torch.tensor([[10**15, 10**15 + 30, 10**15 + 89, 5], [4, 4, 4, 4]])
    real = torch.tensor([[True, True, True, False], [True, True, True, True]])

    assert intervals(times, real)[:, :3, :3].tolist() == [[[0, 1, 2], [1, 0, 1], [2, 1, 0]], [[0] * 3] * 3]
    assert intervals(times, real).max() <= 256


def test_types_move_with_a_history_that_is_padded_on_the_left(tmp_path: Path) -> None:
    (tmp_path / "types.txt").write_text(KEYS, encoding="utf-8")
    options = {"type_vocabulary": tmp_path / "types.txt", "padding_id": PADDING, "padding_side": "left"}
    path, card = exported(tmp_path, Leftward, **options)
    kinds = np.minimum(KINDS, TYPES - 1)
    got = ModelFile(path).rank(HISTORIES, 10, beside={"history_types": kinds})
    network, expected = Leftward(), []
    for history, types in zip(HISTORIES, kinds, strict=True):
        left = LONGEST - len(history)
        moved = torch.tensor([[0] * left + types[: len(history)].tolist()])
        with torch.no_grad():
            vector = network(torch.tensor([[PADDING] * left + history]), moved)
            expected.append((vector @ network.items.weight.T)[0].numpy())
    scores = np.stack(expected)
    scores[:, PADDING] = -np.inf

    assert {file.role for file in card.files} == {"model", "type_vocabulary"}
    assert difference(got, scores, 10, 1e-3) is None


def test_types_from_0_on_without_times_and_inputs_in_another_order_are_taken_too(tmp_path: Path) -> None:
    kinds = np.minimum(KINDS, TYPES - 1)
    expected = np.stack(
        [scores_of(Counting(), history, history_types=kinds[row]) for row, history in enumerate(HISTORIES)]
    )
    best = np.argsort(-expected[0], kind="stable")[:5].tolist()
    line = {"history": HISTORIES[0], "history_types": kinds[0, :3].tolist(), "recommendations": best}
    (tmp_path / "parity.jsonl").write_text(json.dumps(line), encoding="utf-8")
    path, card = exported(tmp_path, Counting, default_type=2, parity=tmp_path / "parity.jsonl")

    assert [each.history_types for each in card.parity] == [(1, 2, 2)]
    assert card.history_types == CardTypes(count=TYPES, first=0, default=2)
    assert card.history_times is None
    assert difference(ModelFile(path).rank(HISTORIES, 10, beside={"history_types": kinds}), expected, 10, 1e-4) is None


@pytest.mark.parametrize(
    ("network", "options", "sentence"),
    [
        (Careless, {}, "The padding changes what Careless yields"),
        (Untold, {}, "Untold.forward takes `history_types`, but nothing says how many there are"),
        (Untold, {"types": 0}, "Untold has 0 types of events"),
        (Untold, {"types": TYPES + 1}, "failed on a history"),
        (Counting, {"types": TYPES + 1}, "types is 4, but Counting.known_types is 3"),
        (Counting, {"unknown_type": TYPES}, "unknown_type is 3; give a whole number from 0 to 2"),
        (Counting, {"default_time": 5}, "Counting reads times, but its forward takes none"),
        (Counting, {"sorted_times": True}, "Counting reads times, but its forward takes none"),
        (Shopper, {"first_type": 2}, "first_type is 2; give 1, where 0 is padding, or 0"),
        (Shopper, {"default_time": -1}, "default_time is -1, but Shopper.default_time is 0"),
        (Neither, {}, "Neither has types of events, but its forward takes none"),
    ],
)
def test_types_and_times_that_contradict_the_network_are_refused_with_a_sentence(
    tmp_path: Path, network: type[nn.Module], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ExportError) as refused:
        exported(tmp_path, network, **options)

    assert sentence in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_keys_of_types_are_one_for_each(tmp_path: Path) -> None:
    (tmp_path / "types.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(ExportError, match="has 2 keys and the network 3 types of events"):
        exported(tmp_path, Shopper, type_vocabulary=tmp_path / "types.txt")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"history_times": [5, 6]}, "history_times is not as long as the history"),
        ({"history_times": [5, 6, "7"]}, "history_times are not all Unix milliseconds"),
        ({"history_types": ["view", "cart", "sold"]}, "'sold' is not a type that the model knows"),
        ({"history_times": [5, 6, 2**63]}, "history_times are not all Unix milliseconds"),
        ({"history_types": [1, 2, 4]}, "4 is not a type that the model knows"),
    ],
)
def test_types_and_times_of_a_parity_file_are_those_of_the_model(
    tmp_path: Path, changes: dict[str, Any], wrong: str
) -> None:
    named = {"history_types": ["view", "cart", "bought"], "history_times": TIMES[0, :3].tolist()}
    line = {"history": [1, 2, 3], **named, "recommendations": [1], **changes}
    (tmp_path / "parity.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (tmp_path / "types.txt").write_text(KEYS, encoding="utf-8")
    options = {"parity": tmp_path / "parity.jsonl", "type_vocabulary": tmp_path / "types.txt"}
    with pytest.raises(ExportError, match=wrong):
        exported(tmp_path, Shopper, **options)
