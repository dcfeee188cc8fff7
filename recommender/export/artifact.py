"""The artifact: model file, external data, lists and card, written beside each other in one move."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, numpy_helper

from recommender.export.errors import ExportError
from recommender.export.table import TABLE
from recommender.models.card import Card, CardFile, FileRole, card_path, file_sha256

Files: TypeAlias = dict[Path, FileRole]
"""Files of one artifact with what they are in it, the model first."""


@contextmanager
def drafts(output: Path) -> Iterator[Path]:
    """A folder beside `output`, on the same file system, which is gone afterwards whatever happens."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise ExportError(
            f"{output.parent} cannot be written: {error.strerror or error}. "
            "Give an output in a folder with room that you may write to."
        ) from error


def write_model(
    model: onnx.ModelProto, table: npt.NDArray[np.float32] | None, path: Path, external_data_bytes: int
) -> Files:
    """Write the model with its table inside, or in `{path}.data` when it has that many bytes; returns the files.

    ExportError where the model is too large for one file without its table.
    """
    files: Files = {path: "model"}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if table is not None and table.nbytes < external_data_bytes:
        whole.graph.initializer.append(numpy_helper.from_array(table, TABLE))
    elif table is not None:
        data = path.with_name(path.name + ".data")
        table.tofile(data)
        tensor = TensorProto(name=TABLE, data_type=TensorProto.FLOAT, dims=table.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", data.name), ("offset", "0"), ("length", str(table.nbytes))):
            tensor.external_data.add(key=key, value=value)
        whole.graph.initializer.append(tensor)
        files[data] = "external_data"
    try:
        path.write_bytes(whole.SerializeToString())
    except (ValueError, EncodeError) as error:
        raise ExportError(
            f"The model is larger than one ONNX file may be: {error}. Only the item table can stand in a file of its "
            "own; lower external_data_bytes, and see that the network has no other tables of that size."
        ) from error
    return files


def card_files(files: Files) -> tuple[CardFile, ...]:
    """What the card says about these files."""
    return tuple(
        CardFile(path=file.name, role=role, size=file.stat().st_size, sha256=file_sha256(file))
        for file, role in files.items()
    )


def publish(files: Files, card: Card, output: Path) -> None:
    """Move the files to where `output` stands and write the card: the model after its data, the card last.

    A reader in between sees a card that does not fit its files, which the digests tell.
    """
    model, *rest = files
    draft = model.parent / card_path(output).name
    draft.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for file in (*rest, model, draft):
        file.replace(output.parent / file.name)
