"""Networks that a library's script hands over as programs: they read histories as the hand-over declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recommender.export.check import ModelFile
from recommender.export.errors import ExportError
from recommender.export.networks.inputs import padded
from recommender.importers.forms import network_of
from recommender.importers.handover import ARRAYS, HANDOVER, PROGRAM, read_handover
from tests.importers.conftest import run

ITEMS, DIM, WIDTH = 30, 4, 6
Change = Callable[[dict[str, Any], dict[str, Any]], object]


class OnTheRight(nn.Module):
    """A network that reads ids padded with 0 on the right, and their number."""

    first_item = 1
    longest = WIDTH

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.rows = nn.Embedding(ITEMS + self.first_item, DIM)
        self.places = nn.Parameter(torch.rand(WIDTH))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        last: Tensor = self.rows(ids.gather(1, (lengths - 1)[:, None]).squeeze(1))
        summed: Tensor = (self.rows(ids) * (self.places * (ids != 0))[:, :, None]).sum(dim=1)
        return last + summed

    def read(self, history: Sequence[int]) -> tuple[Tensor, ...]:
        ids = [item + 1 for item in history]
        return torch.tensor([ids + [0] * (WIDTH - len(ids))]), torch.tensor([len(ids)])


class OnTheLeft(nn.Module):
    """A network that reads a mask, id 1, behind the history, and ids padded with 0 on the left."""

    first_item = 2
    longest = WIDTH - 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rows = nn.Embedding(ITEMS + self.first_item, DIM)
        self.places = nn.Parameter(torch.rand(WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        summed: Tensor = (self.rows(ids) * (self.places * (ids != 0))[:, :, None]).sum(dim=1)
        return summed

    def read(self, history: Sequence[int]) -> tuple[Tensor, ...]:
        ids = [*(item + 2 for item in history), 1]
        return (torch.tensor([[0] * (WIDTH - len(ids)) + ids]),)


SIZES: dict[type[OnTheLeft | OnTheRight], dict[str, object]] = {
    OnTheRight: {"width": WIDTH, "padding_side": "right", "first_item": 1},
    OnTheLeft: {"width": WIDTH, "padding_side": "left", "first_item": 2, "mask_id": 1},
}


def histories(longest: int) -> list[list[int]]:
    random = np.random.default_rng(6)
    return [random.integers(0, ITEMS, 1 + row % longest).tolist() for row in range(200)]


def handed_over(folder: Path, network: OnTheLeft | OnTheRight, change: Change = lambda _told, _arrays: None) -> Path:
    """A hand-over as the scripts write it: the encoder as a program, the items' vectors and a bias as arrays."""
    example = tuple(part.expand(3, *part.shape[1:]).contiguous() for part in network.read([1, 2, 3]))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(network.eval(), example, dynamic_shapes=tuple(batch for _ in example))
    vectors = network.rows.weight.detach().numpy()[network.first_item :]
    arrays: dict[str, Any] = {"weights": vectors, "bias": np.linspace(0, 1, ITEMS, dtype=np.float32)}
    rankings = []
    for history in histories(network.longest):
        with torch.no_grad():
            scores = vectors @ network(*network.read(history))[0].numpy() + arrays["bias"]
        rankings.append({"history": history, "user": None, "items": np.argsort(-scores)[:20].tolist()})
    told: dict[str, Any] = {
        "format": 1,
        "library": "recbole",
        "library_version": "1.2.1",
        "network": type(network).__name__,
        "form": "program",
        "sizes": dict(SIZES[type(network)]),
        "parameters": {},
        "items": ITEMS,
        "rankings": rankings,
    }
    change(told, arrays)
    folder.mkdir()
    torch.export.save(program, folder / PROGRAM)
    np.savez(folder / ARRAYS, **arrays)
    (folder / HANDOVER).write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", SIZES)
def test_a_program_reads_histories_as_its_hand_over_declares(
    kind: type[OnTheLeft | OnTheRight], tmp_path: Path
) -> None:
    theirs = kind().eval()
    folder = handed_over(tmp_path / "handover", theirs)
    ours: Any = network_of(*read_handover(folder), folder)
    asked = histories(kind.longest)[:12]
    ids, lengths = padded(asked)

    assert ours.longest_history == kind.longest
    with torch.no_grad():
        users = ours(torch.from_numpy(ids), torch.from_numpy(lengths))
        wanted = torch.cat([theirs(*theirs.read(history)) for history in asked])
    torch.testing.assert_close(users, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_a_program_is_imported_and_ranks_as_the_library_does(
    kind: type[OnTheLeft | OnTheRight], tmp_path: Path
) -> None:
    folder, model = handed_over(tmp_path / "handover", kind()), tmp_path / "1" / "model.onnx"
    code, told = run("recbole", folder, "--output", model, "--name", "theirs")

    assert code == 0, told
    assert "Ranking: that of recbole 1.2.1 for 200 histories" in told
    first = read_handover(folder)[0].rankings[0]
    assert ModelFile(model).rank([first.history], 10).ids[0].tolist() == list(first.items[:10])


def diverged(_told: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["weights"] = np.full((ITEMS, DIM), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda told, _: told["sizes"].update(width=WIDTH + 1), "takes 6 ids; the hand-over says 7"),
        (lambda told, _: told["sizes"].update(padding_side="both"), "padded on the both"),
        (lambda told, _: told["sizes"].pop("first_item"), "first_item = None; expected is a whole number"),
        (diverged, "holds NaN or infinity 120 times"),
        (lambda _, arrays: arrays.update(more=arrays["bias"]), "no place for: more"),
    ],
)
def test_a_program_that_does_not_fit_its_hand_over_is_refused(change: Change, sentence: str, tmp_path: Path) -> None:
    folder = handed_over(tmp_path / "handover", OnTheRight(), change)
    with pytest.raises(ExportError, match=sentence):
        network_of(*read_handover(folder), folder)


def test_a_hand_over_without_its_program_is_refused(tmp_path: Path) -> None:
    folder = handed_over(tmp_path / "handover", OnTheRight())
    (folder / PROGRAM).unlink()
    with pytest.raises(ExportError, match=r"encoder\.pt2 cannot be read as a program"):
        network_of(*read_handover(folder), folder)
