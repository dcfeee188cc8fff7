"""Networks that take users: what is exported of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.check import ModelFile, difference
from recommender.models.card import Card, CardUsers, card_path
from tests.support.user_networks import ITEMS, SIZE, USERS, Factors, Hybrid

KEYS = "".join(f"user-{number}\n" for number in range(USERS))


class Untold(Hybrid):
    """Says nowhere how many users it has."""

    user_embeddings = None  # type: ignore[assignment]


class Scores(Untold):
    """Returns scores, and takes its inputs in another order."""

    def forward(self, user: Tensor, sequence: Tensor, length: Tensor) -> Tensor:  # type: ignore[override]
        scores: Tensor = super().forward(sequence, length, user) @ self.items.weight.T
        return scores

    item_embeddings = None  # type: ignore[assignment]


class Userless(nn.Module):
    """Says that it has users, and takes none."""

    known_users = USERS

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, SIZE)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        vectors: Tensor = self.items(user_history[:, 0]) * history_length[:, None]
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.items.weight


def exported(folder: Path, network: type[nn.Module], **options: Any) -> tuple[Path, Card]:
    word = f"{network.__module__}:{network.__name__}"
    path = export_model(ExportOptions(network=word, output=folder / "10_model.onnx", **options))
    return path, Card.model_validate_json(card_path(path).read_bytes())


def scores_of(network: Any, history: list[int], user: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    with torch.no_grad():
        vector = network(torch.tensor([history or [0]]), torch.tensor([len(history)]), torch.tensor([user]))
        scores = (vector @ network.items.weight.T)[0].numpy()
    return np.asarray(scores, np.float32)


HISTORIES = [[1, 2, 3], [], [5], [59, 58, 1, 1, 0], []]
NUMBERS = [0, 3, 9, 1, 0]
BESIDE = {"user": np.array(NUMBERS)}


@pytest.mark.parametrize("options", [{}, {"padding_id": 4, "padding_side": "left", "longest_history": 6}])
def test_a_network_with_users_answers_as_it_does_in_torch(tmp_path: Path, options: dict[str, Any]) -> None:
    network = Hybrid()
    path, card = exported(tmp_path, Hybrid, **options)
    expected = np.stack([scores_of(network, *row) for row in zip(HISTORIES, NUMBERS, strict=True)])
    expected[:, list(card.never_recommended)] = -np.inf
    got = ModelFile(path).rank(HISTORIES, 10, beside=BESIDE)

    assert card.users == CardUsers(count=USERS)
    assert {golden.user for golden in card.golden} == {0, 1, USERS}
    assert any(not golden.item_ids for golden in card.golden)
    if not options:
        assert difference(got, expected, 10, 1e-4) is None


def test_factors_without_a_history_are_exported_with_their_first_user(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text(KEYS, encoding="utf-8")
    path, card = exported(tmp_path, Factors, user_vocabulary=tmp_path / "users.txt")
    network = Factors()
    expected = (network.factors @ network.items.T + network.bias).detach().numpy()
    got = ModelFile(path).rank([[]] * USERS, 10, beside={"user": np.arange(USERS)})

    assert card.users == CardUsers(count=USERS, first=0, unknown="fallback")
    assert {file.role for file in card.files} == {"model", "user_vocabulary"}
    assert difference(got, expected, 10, 1e-4) is None


def test_scores_and_inputs_in_another_order_are_taken_too(tmp_path: Path) -> None:
    path, card = exported(tmp_path, Scores, users=USERS, unknown_user="history")
    expected = np.stack([scores_of(Hybrid(), *row) for row in zip(HISTORIES, NUMBERS, strict=True)])

    assert card.users == CardUsers(count=USERS, unknown="history")
    assert difference(ModelFile(path).rank(HISTORIES, 10, beside=BESIDE), expected, 10, 1e-4) is None


@pytest.mark.parametrize(
    ("network", "options", "sentence"),
    [
        (Untold, {}, "Untold.forward takes `user`, but nothing says how many there are"),
        (Untold, {"users": 0}, "Untold has 0 users"),
        (Untold, {"users": USERS + 1}, "failed on a history"),
        (Hybrid, {"users": USERS + 1}, "Hybrid has 10 users from 1 on, but user_embeddings() has 10 rows"),
        (Hybrid, {"unknown_user": "guess"}, "unknown_user is 'guess'"),
        (Hybrid, {"first_user": 2}, "first_user is 2"),
        (Hybrid, {"first_user": 0, "unknown_user": "row"}, "has no number for an unknown user"),
        (Factors, {"users": 3}, "users is 3, but Factors.known_users is 9"),
        (Userless, {}, "Userless has users, but its forward takes none"),
    ],
)
def test_users_that_contradict_the_network_are_refused_with_a_sentence(
    tmp_path: Path, network: type[nn.Module], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ExportError) as refused:
        exported(tmp_path, network, **options)

    assert sentence in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_keys_of_users_are_one_for_each(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(ExportError, match="has 2 keys and the network 9 users"):
        exported(tmp_path, Hybrid, user_vocabulary=tmp_path / "users.txt")


@pytest.mark.parametrize(("swapped", "named"), [(False, "user-2"), (True, 3), (False, 99), (False, "none")])
def test_a_parity_file_may_name_users(tmp_path: Path, swapped: bool, named: int | str) -> None:  # noqa: FBT001
    best = np.argsort(-scores_of(Hybrid(), [], 3), kind="stable")[:5].tolist()
    line = {"user": named, "history": [], "recommendations": best[::-1] if swapped else best}
    (tmp_path / "parity.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (tmp_path / "users.txt").write_text(KEYS, encoding="utf-8")
    options = {"parity": tmp_path / "parity.jsonl", "user_vocabulary": tmp_path / "users.txt"}
    if swapped or named in (99, "none"):
        wrong = r"for the history \[\] of user 3" if swapped else "is not a user that the model knows"
        with pytest.raises(ExportError, match=wrong):
            exported(tmp_path, Hybrid, **options)
    else:
        _, card = exported(tmp_path, Hybrid, **options)
        assert [expected.user for expected in card.parity] == [3]
