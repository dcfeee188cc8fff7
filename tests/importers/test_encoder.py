"""`recommender import vectors --encoder`: an ONNX file of another exporter makes the users' vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from recommender.export.check import ModelFile
from recommender.models.artifact import open_artifact
from tests.importers.conftest import run

ITEMS, DIM = 60, 4
VECTORS = np.random.default_rng(6).normal(size=(ITEMS, DIM)).astype(np.float32)
OWN = np.random.default_rng(7).normal(size=(ITEMS, DIM)).astype(np.float32)
HISTORIES = [[3, 1, 2], [0], [9, 1, 8, 4, 2]]


def encoder(
    path: Path, *, kind: int = TensorProto.INT64, opset: int = 18, batch: int | str = "n", output: str = "last",
    lengths: bool = True, reads_padding: bool = False,
) -> Path:  # fmt: skip
    """An encoder that looks the last item up in a table of its own; with `reads_padding` the last column."""
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
    inputs = [helper.make_tensor_value_info("ids", kind, (batch, "width"))]
    if lengths:
        inputs.append(helper.make_tensor_value_info("sizes", kind, (batch,)))
    else:
        nodes.insert(0, helper.make_node("Shape", ["ids"], ["sizes"], start=1))
    graph = helper.make_graph(
        nodes, "theirs", inputs, [helper.make_tensor_value_info(output, TensorProto.FLOAT, (batch, DIM))],
        [one, minus, numpy_helper.from_array(OWN, "own")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def imported(folder: Path, file: Path) -> tuple[int, str, Path]:
    np.save(folder / "vectors.npy", VECTORS)
    output = folder / "out" / "model.onnx"
    code, told = run("vectors", folder / "vectors.npy", "--encoder", file, "--output", output, "--name", "shop")
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": 1}, "takes a batch of 1 only, by 'ids'; export it with both free"),
        ({"lengths": False}, "an encoder takes ids [batch, history] and lengths [batch]"),
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
