"""The encoder: a network as ONNX nodes from histories to user vectors, reading the item table of the head."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.head import TABLE
from recommender.export.nodes import Nodes

OPSET = 18
# torch fixes a dimension that is 0 or 1 in the example, so the example has neither.
_EXAMPLE_BATCH, _EXAMPLE_HISTORY = 3, 5


def export_encoder(network: nn.Module, longest_history: int | None) -> onnx.ModelProto:
    """The network's `forward` as an ONNX model with dynamic batch and history.

    Inputs `user_history` int64 [batch, history] and `history_length` int64 [batch]; one output, `user_vectors`.
    ExportError where torch cannot export the module.
    """
    width = _EXAMPLE_HISTORY if longest_history is None else min(_EXAMPLE_HISTORY, longest_history)
    history = torch.zeros((_EXAMPLE_BATCH, width), dtype=torch.int64)
    length = torch.full((_EXAMPLE_BATCH,), width, dtype=torch.int64)
    batch = torch.export.Dim("batch")
    width_name = torch.export.Dim("history", max=longest_history)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network.eval(),
                (history, length),
                dynamo=True,
                opset_version=OPSET,
                input_names=["user_history", "history_length"],
                output_names=["user_vectors"],
                dynamic_shapes=({0: batch, 1: width_name}, {0: batch}),
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch could not export {type(network).__name__} to ONNX: {_first_line(error)}. Its forward must take "
            "(user_history [batch, history], history_length [batch]) of any batch and history, without Python branches "
            "on their values."
        ) from error
    assert program is not None
    return program.model_proto


def add_encoder(
    g: Nodes, encoder: onnx.ModelProto, embeddings: npt.NDArray[np.float32], *, columns: int
) -> str:
    """Add the encoder's nodes to `g`, its look-ups turned to the head's table; returns the user vectors' name.

    `embeddings` [items, d] are the first d of the table's `columns`.
    """
    graph = encoder.graph
    size = embeddings.shape[1]
    tables = {
        tensor.name
        for tensor in graph.initializer
        if tuple(tensor.dims) == embeddings.shape and np.array_equal(numpy_helper.to_array(tensor), embeddings)
    }
    kept: set[str] = set()
    for node in graph.node:
        node.ClearField("metadata_props")  # Holds stack traces and paths of the exporting machine.
        node.ClearField("doc_string")
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if node.op_type == "Gather" and node.input[0] in tables and axis == 0:
            node.input[0] = TABLE
            if columns > size:
                vectors = g.fresh("vectors")
                bounds = [g.int64(number) for number in (0, size, -1)]
                cut = helper.make_node("Slice", [vectors, *bounds], node.output)
                node.output[0] = vectors
                g.nodes.extend((node, cut))
                continue
        kept.update(tables.intersection(node.input))
        g.nodes.append(node)
    # A table that is used in another way than by look-up stays as a second copy.
    g.initializers.extend(tensor for tensor in graph.initializer if tensor.name not in tables - kept)
    return graph.output[0].name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter prints its progress and warns about itself; neither helps who exports."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """The sentence at the root of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
