"""`recommender models adapt`: files of the shapes that are found in the wild rank by their own scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from typer.testing import CliRunner

from recommender.cli.models import app
from recommender.export.check import ModelFile
from recommender.models.artifact import open_artifact
from tests.support.foreign import ITEMS, WIDTH, File, branching

HISTORIES = [[3, 1, 2], [0], [5, 5, 29, 3], [9, 1, 8, 4, 2]]
LEFT = File()
SHAPES: dict[str, tuple[File, tuple[str, ...], str]] = {
    "padded on the left, without lengths": (LEFT, (), "filled up on the left with id 0; item 0 is its id 1"),
    "item_id_list and item_length of int32": (
        File(names=("item_id_list", "item_length"), kind=TensorProto.INT32), (), "Lengths: input 'item_length', without"
    ),
    "scores at every place": (
        File(names=("item_id_list", "item_length"), stepwise=True), (), "at the last real place"
    ),
    "a mask behind the catalogue": (
        File(behind=1), ("--mask-id", str(ITEMS + 1)), f"the mask {ITEMS + 1} behind the last item"
    ),
    "a padding and a mask before it": (File(before=2), ("--mask-id", "1", "--first-item", "2"), "from column 2 on"),
    "a fixed batch of 1": (File(batch=1), (), "one history at a time, so batches run row by row"),
    "operators of an older version": (File(opset=14), (), "30 items from column 1 on"),
    "a width that it does not tell": (File(width="time"), ("--width", str(WIDTH)), f"{WIDTH} ids"),
}  # fmt: skip


def adapt(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["adapt", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_each_shape_ranks_by_its_own_scores(shape: str, tmp_path: Path) -> None:
    file, options, assumed = SHAPES[shape]
    output = tmp_path / "shop" / "model.onnx"
    code, told = adapt(file.write(tmp_path / "foreign.onnx"), "--output", output, "--name", "shop", *options)

    assert code == 0, told
    assert assumed in told
    card = open_artifact(output).card
    assert card is not None
    masked = "--mask-id" in options
    assert (card.items, card.longest_history, card.name) == (ITEMS, WIDTH - masked, "shop")
    ranked = ModelFile(output).rank(HISTORIES, 10)
    for history, ids in zip(HISTORIES, ranked.ids, strict=True):
        mask = [int(options[options.index("--mask-id") + 1])] if masked else []
        rows = [*(item + file.before for item in history), *mask]
        scores = file.scores(rows, 0 if len(file.names) > 1 else WIDTH - len(rows))
        assert ids.tolist() == np.argsort(-scores)[:10].tolist()


@pytest.mark.parametrize(
    ("file", "options", "sentence"),
    [
        (File(more=("user_features",)), (), "inputs that no request fills: 'user_features' float [batch, 3]"),
        (File(kind=TensorProto.FLOAT), (), "no input of item ids, [batch, history] of int32 or int64"),
        (File(width="time"), (), "of any width, padded on the left; say the width by --width"),
        (LEFT, ("--items", "40"), "31 scores, and 40 items from column 1 on do not fit"),
        (LEFT, ("--padding-side", "up"), "give right or left"),
        (LEFT, ("--num-recommendations", "31"), "Only 30 items may be recommended"),
    ],
)
def test_what_cannot_be_adapted_is_named_and_nothing_is_written(
    file: File, options: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    output = tmp_path / "shop" / "model.onnx"
    code, told = adapt(file.write(tmp_path / "foreign.onnx"), "--output", output, *options)

    assert code == 2
    assert sentence in told.replace("\n", " ")
    assert not output.exists()


def test_a_file_that_branches_on_data_is_named_unless_it_takes_one_row_alone(tmp_path: Path) -> None:
    several, alone = File(), File(batch=1)
    for file in (several, alone):
        name = f"{file.batch}.onnx"
        output = tmp_path / f"{file.batch}" / "model.onnx"
        code, told = adapt(branching(file.write(tmp_path / name), file.names[0], "logits"), "--output", output)

        assert code == (0 if file is alone else 2), told
        assert ("branches on the values of its inputs, at If 'asks'" in told.replace("\n", " ")) == (file is several)
        assert output.exists() == (file is alone)


def test_what_is_no_onnx_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(b"none")
    code, told = adapt(path, "--output", tmp_path / "model.onnx")

    assert code == 2
    assert "cannot be read as ONNX" in told
