"""A foreign file: which of the known shapes of contract it has, and its own scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, ValueInfoProto, inliner

from recommender.export.errors import ExportError
from recommender.export.obstacles import obstacle, sentence
from recommender.export.options import Side
from recommender.importers.adapt.branches import refuse_branches
from recommender.importers.adapt.filling import Filling

Scores = npt.NDArray[np.float32]

WHOLE = (TensorProto.INT64, TensorProto.INT32)
REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_MASKS = ("attention_mask", "mask", "padding_mask")


@dataclass(frozen=True, slots=True)
class Declared:
    """Facts that a file does not contain; None means the usual value for its shape.

    `first_item` is the model's id of item 0, `mask_id` an id that it needs after the history. `width` is the number of
    ids that it takes, `items` the size of the catalogue, `first_column` the output's column of item 0.
    """

    padding_id: int = 0
    padding_side: Side | None = None
    first_item: int | None = None
    mask_id: int | None = None
    width: int | None = None
    items: int | None = None
    first_column: int | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file of a known shape, with all that an adapter has to know of it.

    Inputs are named `history`, and `length` and `mask` where it has them; `output` yields scores, for each place of the
    history if it is `stepwise`. With `single` its batch is fixed at 1.
    """

    path: Path
    model: onnx.ModelProto
    history: str
    length: str | None
    mask: str | None
    types: dict[str, int]
    output: str
    stepwise: bool
    single: bool
    filling: Filling
    first_column: int
    items: int

    @property
    def longest(self) -> int | None:
        """The most recent items that it reads."""
        return self.filling.longest

    def assumed(self) -> list[str]:
        """Sentences on what the file was taken for."""
        where = f" at the {'last' if self.filling.side == 'left' else 'last real'} place" if self.stepwise else ""
        told = [
            f"Histories: input {self.history!r}, {self.filling.assumed()}",
            f"Scores: output {self.output!r}{where}, {self.items:,} items from column {self.first_column} on.",
        ]
        if self.length is not None:
            told.append(
                f"Lengths: input {self.length!r}, {'with' if self.filling.mask_id is not None else 'without'} the mask."
            )
        if self.mask is not None:
            told.append(f"Mask: input {self.mask!r} is 1 for an item.")
        if self.single:
            told.append(
                "Batch: the file takes one history at a time, so batches run row by row, and batching saves nothing."
            )
        return told

    def scores(self, histories: Sequence[Sequence[int]]) -> Scores:
        """The file's own scores, each history by itself: [histories, items]."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
            rows = [session.run([self.output], self._fed(history))[0][0] for history in histories]
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ExportError(f"{self.path} does not run as it is taken: {obstacle(error)}.") from error
        left = self.filling.side == "left"
        at = [-1 if left else len(self.filling.ids(history)) - 1 for history in histories]
        last = [row[place] if self.stepwise else row for row, place in zip(rows, at, strict=True)]
        return np.stack([each[self.first_column : self.first_column + self.items] for each in last]).astype(np.float32)

    def _fed(self, history: Sequence[int]) -> dict[str, npt.NDArray[np.generic]]:
        filling = self.filling
        ids, left = filling.ids(history), filling.side == "left"
        empty = [filling.padding_id] * ((filling.width or len(ids)) - len(ids))
        row = [*empty, *ids] if left else [*ids, *empty]
        real = [0] * len(empty) + [1] * len(ids) if left else [1] * len(ids) + [0] * len(empty)
        fed: dict[str, list[int] | list[list[int]]] = {self.history: [row]}
        if self.length is not None:
            fed[self.length] = [len(ids)]
        if self.mask is not None:
            fed[self.mask] = [real]
        return {
            name: np.array(value, onnx.helper.tensor_dtype_to_np_dtype(self.types[name])) for name, value in fed.items()
        }


def read_foreign(path: Path, declared: Declared) -> Foreign:
    """Identify the shape of a file; raises ExportError that names each part that fits none."""
    model = load_model(path)
    given = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in given]
    history, length, mask = _inputs(path, inputs)
    output = _output(path, list(model.graph.output))
    single = fixed_size(history, 0) == 1
    if not single:
        refuse_branches(path, model.graph, [each.name for each in inputs])
    side = declared.padding_side or ("right" if length is not None else "left")
    width = fixed_size(history, 1) or declared.width
    if width is None and side == "left":
        raise ExportError(f"{path} takes histories of any width, padded on the left; say the width by --width.")
    first = declared.first_item if declared.first_item is not None else int(declared.padding_id == 0)
    column = declared.first_column if declared.first_column is not None else first
    columns = fixed_size(output, -1)
    if columns is None and declared.items is None:
        raise ExportError(
            f"{path} does not tell how many scores {output.name!r} has; give the number of items with --items."
        )
    special = {declared.padding_id, declared.mask_id}
    items = declared.items or (columns or 0) - column
    while declared.items is None and items > 0 and items - 1 + first in special:
        items -= 1
    if items < 1 or (columns is not None and column + items > columns):
        raise ExportError(f"{path} has {columns} scores, and {items} items from column {column} on do not fit them.")
    return Foreign(
        path=path,
        model=model,
        history=history.name,
        length=None if length is None else length.name,
        mask=None if mask is None else mask.name,
        types={each.name: each.type.tensor_type.elem_type for each in (history, length, mask) if each is not None},
        output=output.name,
        stepwise=rank_of(output) == 3,  # noqa: PLR2004
        single=single,
        filling=Filling(width, side, declared.padding_id, first, declared.mask_id),
        first_column=column,
        items=items,
    )


def load_model(path: Path) -> onnx.ModelProto:
    """Read a file of another exporter, its own functions inlined; raises ExportError if it is no ONNX."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors have no common base
        raise ExportError(f"{path} cannot be read as ONNX: {sentence(error)}.") from error
    return inliner.inline_local_functions(model) if model.functions else model


def _inputs(
    path: Path, inputs: Sequence[ValueInfoProto]
) -> tuple[ValueInfoProto, ValueInfoProto | None, ValueInfoProto | None]:
    """The history, and its length and mask where there are such; every other input is named."""
    whole = [each for each in inputs if each.type.tensor_type.elem_type in WHOLE]
    masks = [each for each in inputs if rank_of(each) == 2 and each.name in _MASKS]  # noqa: PLR2004
    histories = [each for each in whole if rank_of(each) == 2 and each not in masks]  # noqa: PLR2004
    lengths = [each for each in whole if rank_of(each) == 1]
    taken = [each.name for each in (*histories[:1], *lengths[:1], *masks[:1])]
    others = [f"{each.name!r} {shown(each)}" for each in inputs if each.name not in taken]
    if not histories or others:
        lacking = "no input of item ids, [batch, history] of int32 or int64" if not histories else ""
        extra = f"inputs that no request fills: {', '.join(others)}" if others else ""
        raise ExportError(f"{path} has {' and '.join(filter(None, (lacking, extra)))}; it cannot be adapted.")
    return histories[0], next(iter(lengths), None), next(iter(masks), None)


def _output(path: Path, outputs: Sequence[ValueInfoProto]) -> ValueInfoProto:
    """The output of scores: the only one of floats [batch, items] or [batch, history, items]."""
    scored = [each for each in outputs if each.type.tensor_type.elem_type in REAL and rank_of(each) in (2, 3)]
    if len(scored) != 1:
        listed = ", ".join(f"{each.name!r} {shown(each)}" for each in outputs)
        raise ExportError(
            f"{path} yields {listed}; expected is one output of scores, [batch, items] or [batch, history, items]. "
            "It cannot be adapted."
        )
    return scored[0]


def rank_of(value: ValueInfoProto) -> int:
    """How many dimensions an input or output has."""
    return len(value.type.tensor_type.shape.dim)


def fixed_size(value: ValueInfoProto, place: int) -> int | None:
    """The size of a dimension; None if it is free."""
    dimension = value.type.tensor_type.shape.dim[place]
    return dimension.dim_value if dimension.HasField("dim_value") and dimension.dim_value > 0 else None


def shown(value: ValueInfoProto) -> str:
    """Type and sizes of an input or output, for a message."""
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    sizes = ", ".join(each.dim_param or str(each.dim_value or "?") for each in value.type.tensor_type.shape.dim)
    return f"{kind} [{sizes}]"
