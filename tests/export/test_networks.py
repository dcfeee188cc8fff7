"""Networks besides the reference: attention, recurrence, and a user's own module."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.check import ModelFile, difference
from recommender.export.networks.load import load_network
from recommender.export.networks.network import real_items
from recommender.export.subject import Subject
from recommender.export.truth import masked
from recommender.models.card import Card, card_path

ITEMS, LONGEST = 700, 24
TOLERANCE = 1e-4


class WithBias(nn.Module):
    """A user's own network: a weighted mean, with a bias for each item."""

    longest_history = LONGEST

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ITEMS, 12)
        self.offsets = nn.Parameter(torch.randn(ITEMS))

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        weights = real_items(user_history, history_length).to(torch.float32)
        vectors: Tensor = (weights.unsqueeze(1) @ self.table(user_history)).squeeze(1)
        return vectors

    def item_embeddings(self) -> Tensor:
        return self.table.weight

    def item_bias(self) -> Tensor:
        return self.offsets


class ScoresOnly(nn.Module):
    """A user's own network that yields the scores of all items itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ITEMS, 8)
        self.out = nn.Linear(8, ITEMS)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        weights = real_items(user_history, history_length).to(torch.float32)
        scores: Tensor = self.out((weights.unsqueeze(1) @ self.table(user_history)).squeeze(1))
        return scores


class WrongSize(WithBias):
    def item_embeddings(self) -> Tensor:
        return torch.zeros((ITEMS, 5))


class Broken(WithBias):
    def __init__(self) -> None:
        super().__init__()
        self.table.weight.data[33, 1] = torch.nan


class ShortBias(WithBias):
    def item_bias(self) -> Tensor:
        return self.offsets[:-1]


class OneUser(WithBias):
    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return super().forward(user_history, history_length)[0]


class Doubles(WithBias):
    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return super().forward(user_history, history_length).double()


class NoNumbers(WithBias):
    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return super().forward(user_history, history_length) / 0


def fails() -> nn.Module:
    sentence = "no data"
    raise RuntimeError(sentence)


def a_number() -> int:
    return 7


@pytest.fixture(autouse=True)
def own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this file be imported as `own_networks`."""
    monkeypatch.setitem(sys.modules, "own_networks", sys.modules[__name__])


def options(network: str, folder: Path, **more: object) -> ExportOptions:
    base = ExportOptions(network=network, output=folder / "10_model.onnx", name="own")
    if network in ("sasrec", "gru4rec"):
        base = dataclasses.replace(base, items=ITEMS, dim=16, longest_history=LONGEST)
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportOptions]:
    """Export a network with these tests' options, once for all of them."""

    @functools.cache
    def export(network: str) -> ExportOptions:
        wanted = options(network, tmp_path_factory.mktemp("exported"))
        export_model(wanted)
        return wanted

    return export


@pytest.mark.parametrize(
    "network",
    [
        "sasrec",
        pytest.param("gru4rec", marks=pytest.mark.slow),
        "own_networks:WithBias",
        pytest.param("own_networks:ScoresOnly", marks=pytest.mark.slow),
    ],
)
def test_a_network_answers_as_torch_does(network: str, exported: Callable[[str], ExportOptions]) -> None:
    wanted = exported(network)
    model = ModelFile(wanted.path)
    card = Card.model_validate_json(card_path(wanted.path).read_text())
    longest = card.longest_history
    assert longest == (None if network.endswith("ScoresOnly") else LONGEST)
    random = np.random.default_rng(3)
    subject = Subject.of(load_network(wanted))
    for rows in (1, 2, 3, 33, 64):
        histories = [random.integers(0, ITEMS, length).tolist() for length in random.integers(1, LONGEST + 1, rows)]
        scores = subject.truth(histories).scores
        for k in (1, 10, ITEMS):
            assert difference(model.rank(histories, k), scores, k, TOLERANCE) is None
        excluded = [(row, int(item)) for row in range(rows) for item in np.argsort(-scores[row])[: 3 * (row % 4)]]
        got = model.rank(histories, 10, excluded)
        assert difference(got, masked(scores, excluded, None), 10, TOLERANCE) is None
        few = [sorted(random.permutation(ITEMS)[: 1 + row].tolist()) for row in range(rows)]
        got = model.rank(histories, 10, excluded, few)
        assert difference(got, masked(scores, excluded, few), 10, TOLERANCE) is None


@pytest.mark.parametrize("network", ["sasrec", pytest.param("gru4rec", marks=pytest.mark.slow)])
def test_batch_mates_and_their_padding_change_nothing_beyond_the_tolerance(
    network: str, exported: Callable[[str], ExportOptions]
) -> None:
    wanted = exported(network)
    model = ModelFile(wanted.path)
    tolerance = Card.model_validate_json(card_path(wanted.path).read_text()).score_tolerance
    short, long = [5, 0, 5], list(range(LONGEST))
    alone, padded = model.rank([short], 10), model.rank([short, long], 10)
    assert np.abs(alone.scores[0] - padded.scores[0]).max() <= tolerance


@pytest.mark.parametrize("network", ["sasrec", pytest.param("gru4rec", marks=pytest.mark.slow)])
def test_the_order_of_a_history_matters(network: str, exported: Callable[[str], ExportOptions]) -> None:
    model = ModelFile(exported(network).path)
    assert not np.allclose(model.rank([[1, 2, 3]], 10).scores, model.rank([[3, 2, 1]], 10).scores)


def test_a_checkpoint_brings_the_trained_numbers(tmp_path: Path) -> None:
    trained = WithBias()
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    path = export_model(options("own_networks:WithBias", tmp_path, checkpoint=tmp_path / "own.pt"))
    scores = Subject.of(trained).truth([[1, 2]]).scores
    assert difference(ModelFile(path).rank([[1, 2]], 10), scores, 10, TOLERANCE) is None


def test_a_seed_makes_the_same_network_and_leaves_torch_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (load_network(options("sasrec", tmp_path, seed=4)).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (
            "sasrek",
            r"network is 'sasrek'; give 'reference', 'sasrec', 'gru4rec', 'tisasrec', 'two-tower', or 'module:factory'",
        ),
        ("no_such_module:make", "module 'no_such_module' cannot be imported"),
        ("own_networks:absent", "has no callable 'absent'"),
        ("own_networks:fails", "own_networks:fails failed: RuntimeError: no data"),
        ("own_networks:a_number", "returned int; it must return a torch.nn.Module"),
        ("own_networks:WrongSize", "user vectors of 12 numbers and item_embeddings.. rows of 5"),
        ("own_networks:ShortBias", "item_bias.. has 699 numbers and item_embeddings.. 700 rows"),
        ("own_networks:OneUser", r"OneUser yields \(12,\); it must yield user vectors \[batch, d\]"),
        ("own_networks:Doubles", "Doubles yields torch.float64; it must yield float32"),
        ("own_networks:NoNumbers", r"NoNumbers yields NaN or infinity for the history \[0\]"),
        ("own_networks:Broken", r"NaN or infinity for 1 of 700 items \(the first: item 33\)"),
    ],
)
def test_a_network_that_makes_no_model_is_refused(network: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=sentence):
        export_model(options(network, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_heads_must_share_the_dimension(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="dim is 16, which 3 heads cannot share evenly; give a multiple of 3"):
        export_model(options("sasrec", tmp_path, heads=3))


def test_a_checkpoint_that_does_not_fit_is_refused_key_by_key(tmp_path: Path) -> None:
    state = load_network(options("gru4rec", tmp_path)).state_dict()
    state["items.weight"] = state["items.weight"][:-1]
    state["stranger"] = torch.zeros(1)
    del state["gru.bias_hh_l0"]
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(ExportError) as refusal:
        load_network(options("gru4rec", tmp_path, checkpoint=tmp_path / "own.pt"))
    told = str(refusal.value)
    assert "missing in the checkpoint: gru.bias_hh_l0" in told
    assert "unknown to the network: stranger" in told
    assert f"items.weight ({ITEMS - 1}, 16) instead of ({ITEMS}, 16)" in told


@pytest.mark.parametrize(("content", "sentence"), [(None, "does not exist"), (b"no zip", "cannot be read as tensors")])
def test_a_checkpoint_that_cannot_be_read_is_refused(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=sentence):
        load_network(options("gru4rec", tmp_path, checkpoint=path))
