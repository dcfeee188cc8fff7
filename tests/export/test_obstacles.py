"""Networks that cannot be exported as they are: each gets a sentence with its cause, its line, and the way on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recommender.export import ExportError, ExportOptions, export_model
from recommender.export.check import ModelFile
from recommender.export.networks.load import load_network
from recommender.export.subject import Subject

ITEMS, DIM, LONGEST = 30, 8, 10


class Base(nn.Module):
    longest_history = LONGEST

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ITEMS, DIM)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1]) < history_length[:, None]
        vectors: Tensor = (self.table(user_history) * real[:, :, None]).sum(dim=1)
        return vectors

    def item_embeddings(self) -> Tensor:
        weight: Tensor = self.table.weight
        return weight


def last(states: Tensor, history_length: Tensor) -> Tensor:
    found: Tensor = states[torch.arange(states.shape[0]), history_length - 1]
    return found


class Causal(Base):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, 2, DIM, batch_first=True), 1)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(user_history.shape[1])
        return last(self.encoder(self.table(user_history), mask=mask), history_length)


class Packed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(DIM, DIM, batch_first=True)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        states = self.table(user_history)
        packed = nn.utils.rnn.pack_padded_sequence(states, history_length, batch_first=True, enforce_sorted=False)
        vectors: Tensor = self.gru(packed)[1][-1]
        return vectors


class Solves(Base):
    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        user = super().forward(user_history, history_length)
        solved: Tensor = torch.linalg.solve(torch.eye(DIM) + user[:, :, None] * user[:, None, :], user)
        return solved


class FixedBatch(Base):
    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return torch.zeros(len(user_history), DIM) + super().forward(user_history, history_length)


class LastColumn(Base):
    def forward(self, user_history: Tensor, _: Tensor) -> Tensor:
        vectors: Tensor = self.table(user_history)[:, -1]
        return vectors


class MaskByValue(Base):
    def forward(self, user_history: Tensor, _: Tensor) -> Tensor:
        vectors: Tensor = (self.table(user_history) * (user_history != 0)[:, :, None]).sum(dim=1)
        return vectors


class NoTable(Base):
    item_embeddings = None  # type: ignore[assignment]


class TableRaises(Base):
    def item_embeddings(self) -> Tensor:
        return self.tabel.weight  # type: ignore[union-attr, return-value]


class Fails(Base):
    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return super().forward(user_history.flop(), history_length)  # type: ignore[attr-defined]


class NoEvaluation(Base):
    def eval(self) -> nn.Module:  # type: ignore[override]
        sentence = "always in training"
        raise RuntimeError(sentence)


class TableAsModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item_embeddings = nn.Embedding(ITEMS, DIM)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        real = torch.arange(user_history.shape[1]) < history_length[:, None]
        vectors: Tensor = (self.item_embeddings(user_history) * real[:, :, None]).sum(dim=1)
        return vectors


class Scores(Base):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, DIM * ITEMS).reshape(DIM, ITEMS))

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        return super().forward(user_history, history_length) @ self.weights


def compiled() -> object:
    return torch.compile(Base())


def program() -> object:
    batch, history = torch.export.Dim("batch"), torch.export.Dim("history", max=LONGEST)
    example = (torch.zeros(3, 5, dtype=torch.int64), torch.full((3,), 5))
    return torch.export.export(Scores(), example, dynamic_shapes=({0: batch, 1: history}, {0: batch}))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])


def options(name: str, folder: Path, **more: object) -> ExportOptions:
    return ExportOptions(network=f"own:{name}", output=folder / "10_model.onnx", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Causal", r"at test_obstacles\.py:\d+ \(return last\(self\.encoder.*call it with is_causal=True"),
        ("Packed", r"Packed sequences cannot be exported; .* history_length - 1"),
        ("Solves", r"ONNX has no linear solver; solve once"),
        ("FixedBatch", r"^ONNX Runtime cannot run what torch exported: .*len\(x\)"),
        ("LastColumn", r"The padding changes what LastColumn yields: .* with longer ones.*--padding-side left"),
        ("MaskByValue", r"The padding changes what MaskByValue yields: .* with other ids in the padding.*--padding-id"),
        ("NoTable", r"yields 8 numbers for a history, .* but table\.weight has 30 rows.*add item_embeddings"),
        ("TableRaises", r"TableRaises\.item_embeddings\(\) failed: .*test_obstacles\.py:\d+ \(return self\.tabel"),
        (
            "Fails",
            r"Fails failed on a history: .*at test_obstacles\.py:\d+ \(return super\(\)\.forward\(",
        ),
        ("NoEvaluation", r"NoEvaluation\.eval\(\) failed: RuntimeError: always in training, at test_obstacles"),
    ],
)
def test_a_network_that_cannot_be_exported_gets_one_sentence(
    name: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=sentence) as refusal:
        export_model(options(name, tmp_path))

    assert "\n" not in str(refusal.value)
    assert "def forward" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"items": ITEMS + 1}, "items is 31, but Base has 30"),
        ({"dim": 4}, "dim is 4, but Base has 8"),
        ({"longest_history": 5}, r"longest_history is 5, but Base\.longest_history is 10"),
        ({"layers": 3}, "layers shapes a built-in network"),
        ({"padding_side": "left"}, "padding_side is 'left', which needs padding_id"),
    ],
)
def test_options_that_contradict_the_network_are_refused(
    more: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export_model(options("Base", tmp_path, **more))


@pytest.mark.parametrize(("name", "side"), [("LastColumn", "left"), ("MaskByValue", "right")])
def test_a_network_with_an_id_for_padding_needs_only_be_told(name: str, side: str, tmp_path: Path) -> None:
    told = options(name, tmp_path, padding_id=0, padding_side=side)
    network = load_network(told)
    subject = Subject.of(network, told)

    truth = subject.truth([[5], [7, 8, 9]])

    assert subject.never == (0,)
    with torch.no_grad():
        vectors = network(torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([3, 3])).numpy()
    assert subject.embeddings is not None
    assert np.allclose(truth.scores[:, 1:], (vectors @ subject.embeddings.T)[:, 1:], atol=1e-5)


def test_a_table_may_be_a_module_of_that_name() -> None:
    network = TableAsModule()

    assert np.array_equal(Subject.of(network).embeddings, network.item_embeddings.weight.detach().numpy())  # type: ignore[arg-type]


def test_a_compiled_module_is_taken_for_what_was_compiled(tmp_path: Path) -> None:
    assert type(load_network(options("compiled", tmp_path))) is Base


def test_a_program_of_torch_export_is_exported(tmp_path: Path) -> None:
    told: list[str] = []
    path = export_model(options("program", tmp_path, longest_history=LONGEST), tell=told.append)
    network = load_network(options("program", tmp_path))

    with torch.no_grad():
        wanted = network(torch.tensor([[4, 2]]), torch.tensor([2]))
    assert ModelFile(path).rank([[4, 2]], 5).ids[0].tolist() == wanted[0].topk(5).indices.tolist()
    assert any(sentence.endswith("yields those of all 30 items itself.") for sentence in told)


def checkpoints(state: dict[str, Tensor], folder: Path) -> dict[str, Callable[[], Path]]:
    from safetensors.torch import save_file  # noqa: PLC0415 (of the export's own dependencies)

    def saved(name: str, content: object) -> Path:
        torch.save(content, folder / name)
        return folder / name

    def tensors() -> Path:
        save_file(dict(state), folder / "s.safetensors")
        return folder / "s.safetensors"

    prefixed = {f"module.{key}": value for key, value in state.items()}
    lightning = {f"model.{key}": value for key, value in state.items()} | {"loss.weight": torch.zeros(1)}
    return {
        "plain": lambda: saved("plain.pt", state),
        "parallel": lambda: saved("parallel.pt", prefixed),
        "trainer": lambda: saved("trainer.pt", {"epoch": 3, "model_state_dict": state, "optimizer": {"lr": 0.1}}),
        "lightning": lambda: saved("l.ckpt", {"state_dict": lightning, "hyper_parameters": {"dim": 8}}),
        "safetensors": tensors,
    }


@pytest.mark.parametrize("form", ["plain", "parallel", "trainer", "lightning", "safetensors"])
def test_a_checkpoint_is_taken_in_the_forms_that_trainers_write(form: str, tmp_path: Path) -> None:
    trained = Base()
    path = checkpoints(dict(trained.state_dict()), tmp_path)[form]()

    network = load_network(options("Base", tmp_path, checkpoint=path))

    assert torch.equal(network.get_parameter("table.weight"), trained.table.weight)


def test_a_pickled_module_is_refused_and_the_reason_is_given(tmp_path: Path) -> None:
    torch.save(TableAsModule(), tmp_path / "whole.pt")

    with pytest.raises(ExportError, match="reading those would run code of its author"):
        load_network(options("Base", tmp_path, checkpoint=tmp_path / "whole.pt"))
