"""`recommender import vectors --encoder`: a program or ONNX file of another exporter makes the users' vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from recommender.export.check import ModelFile
from recommender.models.artifact import open_artifact
from tests.importers.conftest import run
from tests.support.foreign import branching

ITEMS, DIM = 60, 4
VECTORS = np.random.default_rng(6).normal(size=(ITEMS, DIM)).astype(np.float32)
OWN = np.random.default_rng(7).normal(size=(ITEMS, DIM)).astype(np.float32)
HISTORIES = [[3, 1, 2], [0], [9, 1, 8, 4, 2]]


def encoder(
    path: Path, *, kind: int = TensorProto.INT64, opset: int = 18, batch: int | str = "n", output: str = "last",
    lengths: bool = True, reads_padding: bool = False, width: int | str = "width", branches: bool = False,
    own: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = OWN,
) -> Path:  # fmt: skip
    """An encoder with its own table for the last item; with `reads_padding`, for the last column."""
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    minus = numpy_helper.from_array(np.array(-1, np.int64), "minus")
    nodes = [
        helper.make_node("Cast", ["sizes"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Sub", ["wide", "one"], ["before"]),
        helper.make_node("Unsqueeze", ["before", "one"], ["places"]),
        helper.make_node("GatherElements", ["ids", "places"], ["item"], axis=1),
        helper.make_node("Squeeze", ["item", "one"], ["flat"]),
        helper.make_node("Gather", ["ids", "minus"], ["column"], axis=1),
        helper.make_node("Gather", ["own", "column" if reads_padding else "flat"], [output], axis=0),
    ]
    inputs = [helper.make_tensor_value_info("ids", kind, (batch, width))]
    if lengths:
        inputs.append(helper.make_tensor_value_info("sizes", kind, (batch,)))
    elif reads_padding:
        nodes = nodes[-2:]
    else:
        nodes.insert(0, helper.make_node("Shape", ["ids"], ["sizes"], start=1))
    graph = helper.make_graph(
        nodes, "theirs", inputs, [helper.make_tensor_value_info(output, TensorProto.FLOAT, (batch, DIM))],
        [one, minus, numpy_helper.from_array(own, "own")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return branching(path, "wide", output) if branches else path


def imported(folder: Path, file: Path, *options: object) -> tuple[int, str, Path]:
    np.save(folder / "vectors.npy", VECTORS)
    output = folder / "out" / "model.onnx"
    code, told = run(
        "vectors", folder / "vectors.npy", "--encoder", file, "--output", output, "--name", "shop", *options
    )
    return code, told, output


def test_an_onnx_encoder_ranks_as_it_does_by_itself(tmp_path: Path) -> None:
    code, told, output = imported(
        tmp_path, encoder(tmp_path / "encoder.onnx", kind=TensorProto.INT32, opset=15, output="scores")
    )

    assert code == 0, told
    card = open_artifact(output).card
    assert card is not None
    assert (card.items, card.embedding_size, len(card.parity)) == (ITEMS, DIM, 256)
    ranked = ModelFile(output).rank(HISTORIES, 10)
    for history, ids in zip(HISTORIES, ranked.ids, strict=True):
        assert ids.tolist() == np.argsort(-(VECTORS @ OWN[history[-1]]))[:10].tolist()


Free = Literal["batch", "nothing"]
WIDE = np.concatenate([np.zeros((1, DIM), np.float32), OWN, np.ones((1, DIM), np.float32)])
"""An encoder's own rows: id 0 is padding, item 0 is id 1, and the last one is a mask."""


class LastColumn(torch.nn.Module):
    """The row of the last column, padding or not."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.from_numpy(WIDE))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.own[ids[:, -1]] + ids.sum(dim=1, keepdim=True) / 1000


class Sums(LastColumn):
    """The sum of the rows of a width of 6, that of padding and mask too, plus a number for the length."""

    def forward(self, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.own[ids].sum(dim=1) + self.own[0, 0] * length[:, None]


def program(path: Path, module: torch.nn.Module, *, free: Free = "batch") -> Path:
    ids, length = torch.zeros(3, 6, dtype=torch.int64), torch.full((3,), 2)
    given = (ids,) if type(module) is LastColumn else (ids, length)
    shape = {0: torch.export.Dim("batch")} if free == "batch" else {}
    with torch.no_grad():
        exported = torch.export.export(module, given, dynamic_shapes=tuple(shape for _ in given))
    torch.export.save(exported, path)
    return path


def ranks_by(output: Path, user: Callable[[list[int]], np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
    ranked = ModelFile(output).rank(HISTORIES, 10)
    for history, ids in zip(HISTORIES, ranked.ids, strict=True):
        assert ids.tolist() == np.argsort(-(VECTORS @ user(history)))[:10].tolist()


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_encoder_of_a_fixed_width_is_filled_up_on_the_left(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"encoder.{kind}"
    if kind == "pt2":
        program(path, LastColumn())
    else:
        encoder(path, lengths=False, reads_padding=True, width=6, own=WIDE)
    code, told, output = imported(tmp_path, path, "--padding-side", "left")

    assert code == 0, told
    assert "6 ids, filled up on the left with id 0; item 0 is its id 1." in told.replace("\n", " ")
    card = open_artifact(output).card
    assert card is not None
    assert card.longest_history == 6
    more = 1 / 1000 if kind == "pt2" else 0
    ranks_by(output, lambda history: OWN[history[-1]] + more * np.float32(sum(history) + len(history)))


@pytest.mark.slow
def test_a_mask_stands_behind_the_history(tmp_path: Path) -> None:
    path = program(tmp_path / "encoder.pt2", Sums())
    code, told, output = imported(tmp_path, path, "--padding-side", "right", "--mask-id", ITEMS + 1)

    assert code == 0, told
    card = open_artifact(output).card
    assert card is not None
    assert card.longest_history == 5
    ranks_by(output, lambda history: OWN[history].sum(axis=0) + WIDE[-1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "takes 6 ids, no more and no fewer; say how a history is filled up, by --padding-side"),
        (("--padding-side", "up"), "padding_side is 'up'; give right or left"),
        (("--padding-side", "left", "--longest-history", 9), "takes 6 ids, so its longest history is 6, not 9"),
        (("--padding-id", 3), "The padding 3 is the id of item 3"),
        (("--mask-id", 5), "The mask 5 is the id of item 4"),
    ],
)
def test_conventions_that_do_not_fit_the_encoder_are_a_sentence(
    options: tuple[object, ...], sentence: str, tmp_path: Path
) -> None:
    code, told, output = imported(tmp_path, program(tmp_path / "encoder.pt2", LastColumn()), *options)

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert not output.parent.exists()


class Asks(Sums):
    def forward(self, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        found: torch.Tensor = torch.cond(length.max() > 3, torch.neg, torch.abs, (self.own[ids].sum(dim=1),))
        return found


@pytest.mark.parametrize(
    ("module", "free", "sentence"),
    [
        (Asks(), "batch", "branches on the values of its inputs, by torch.cond at 'cond'"),
        (Sums(), "nothing", "takes a batch of 3 only; export it with a dynamic batch"),
    ],
)
def test_a_program_that_cannot_take_any_batch_is_a_sentence(
    module: torch.nn.Module, free: Free, sentence: str, tmp_path: Path
) -> None:
    path = program(tmp_path / "encoder.pt2", module, free=free)
    code, told, output = imported(tmp_path, path, "--padding-side", "right")

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": 1}, "takes a batch of 1 only, by 'ids'; export it with a free batch"),
        ({"lengths": False}, "takes no lengths; say how a history is filled up, by --padding-side"),
        ({"width": 6}, "takes 6 ids, no more and no fewer; say how a history is filled up, by --padding-side"),
        ({"branches": True}, "branches on the values of its inputs, at If 'asks'"),
        ({"kind": TensorProto.FLOAT}, "both int32 or int64"),
        ({"reads_padding": True}, "The padding changes what EncodedByOnnx"),
    ],
)
def test_an_onnx_file_that_is_no_encoder_is_a_sentence(
    change: dict[str, int | bool], sentence: str, tmp_path: Path
) -> None:
    code, told, output = imported(tmp_path, encoder(tmp_path / "encoder.onnx", **change))  # type: ignore[arg-type]

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert not output.exists()
