"""The artifact: model file, external data, lists and card, written together in one move."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from recommender.export.errors import ExportError
from recommender.export.nodes import Array
from recommender.export.table import TABLE
from recommender.models.card import Card, Files, card_path

_PAGE = 4096


@contextmanager
def drafts(output: Path) -> Iterator[Path]:
    """A temporary folder next to `output`, on the same file system; always removed afterwards."""
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
    model: onnx.ModelProto,
    table: npt.NDArray[np.float32] | None,
    path: Path,
    external_data_bytes: int,
    more: Mapping[str, Array] = MappingProxyType({}),
) -> Files:
    """Write the model with its table and `more` tensors inside, or in `{path}.data` when they have that many bytes.

    Returns the files. ExportError where the model is too large for one file without them.
    """
    tensors = dict(more) if table is None else {TABLE: table, **more}
    files: Files = {path: "model"}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if sum(tensor.nbytes for tensor in tensors.values()) < external_data_bytes:
        whole.graph.initializer.extend(numpy_helper.from_array(tensor, name) for name, tensor in tensors.items())
    else:
        data = path.with_name(path.name + ".data")
        whole.graph.initializer.extend(_write_beside(data, tensors))
        files[data] = "external_data"
    try:
        path.write_bytes(whole.SerializeToString())
    except (ValueError, EncodeError) as error:
        raise ExportError(
            f"The model is larger than one ONNX file may be: {error}. Its tables go into a separate file from "
            f"{external_data_bytes:,} bytes on; what is left is too large."
        ) from error
    return files


def _write_beside(data: Path, tensors: Mapping[str, Array]) -> Iterator[TensorProto]:
    """Write tensors one behind the other, each at a whole page; yields what the model says of each."""
    with data.open("wb") as file:
        for name, values in tensors.items():
            offset = -(-file.tell() // _PAGE) * _PAGE
            file.seek(offset)
            values.tofile(file)
            tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(values.nbytes))):
                tensor.external_data.add(key=key, value=value)
            yield tensor


def publish(files: Files, card: Card, output: Path) -> None:
    """Move the files to the place of `output` and write the card: the model after its data, the card last.

    A reader in between sees a card that does not match its files, as the digests show.
    """
    model, *rest = files
    draft = model.parent / card_path(output).name
    draft.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for file in (*rest, model, draft):
        file.replace(output.parent / file.name)
