"""The encoder: a network as ONNX nodes from histories to user vectors, reading the item table of the head."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import torch
from onnx import helper
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.nodes import Nodes
from recommender.export.obstacles import obstacle
from recommender.export.table import TABLE

Vectors = npt.NDArray[np.float32]

OPSET = 18
# torch fixes a dimension that is 0 or 1 in the example, so the example has neither.
_EXAMPLE_BATCH, _EXAMPLE_HISTORY = 3, 5
_LOUD = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
"""Loggers that tell of every step, and print whole graphs where one fails."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network's `forward` in ONNX; `tables` names the initializers, left empty, that only look up the item table."""

    model: onnx.ModelProto
    tables: frozenset[str]


def export_encoder(network: nn.Module, name: str, longest_history: int | None, embeddings: Vectors | None) -> Encoder:
    """The network's `forward` as an ONNX model with dynamic batch and history.

    `name` is what messages call it. Inputs `user_history` int64 [batch, history] and `history_length` int64 [batch];
    one output, the user vectors or the scores. `embeddings` float32 [items, d] are the item table, if there is one.
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
                network,
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
            f"torch could not export {name} to ONNX: {obstacle(error)}. Its forward must take "
            "(user_history [batch, history], history_length [batch]) of any batch and history."
        ) from error
    if program is None:
        raise ExportError(f"torch exported nothing of {name}.")
    tables = frozenset() if embeddings is None else _look_ups(program.model, embeddings)
    return Encoder(onnx_ir.to_proto(program.model), tables)


def _look_ups(model: onnx_ir.Model, embeddings: Vectors) -> frozenset[str]:
    """The initializers that hold the item table and only look up rows of it; they are emptied.

    A table that is used in another way as well stays as a second copy.
    """
    found = set()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tuple(tensor.shape) != embeddings.shape:
            continue
        uses = list(value.uses())
        by_row = all(
            node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0 for node, index in uses
        )
        if by_row and np.array_equal(tensor.numpy(), embeddings):
            # Emptied now: protobuf cannot hold a table of two gigabytes.
            value.const_value = onnx_ir.tensor(np.zeros((1, 1), np.float32), name=name)
            found.add(name)
    return frozenset(found)


def add_encoder(g: Nodes, encoder: Encoder, *, size: int, columns: int) -> str:
    """Add the encoder's nodes to `g`, its look-ups turned to the head's table; returns the name of its output.

    Embeddings are the first `size` of the table's `columns`.
    """
    graph = encoder.model.graph
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.ClearField("metadata_props")  # Holds stack traces and paths of the exporting machine.
        node.ClearField("doc_string")
        g.nodes.append(node)
        if node.op_type != "Gather" or node.input[0] not in encoder.tables:
            continue
        node.input[0] = TABLE
        if columns > size:
            whole = g.fresh("vectors")
            bounds = [g.int64(number) for number in (0, size, -1)]
            g.nodes.append(helper.make_node("Slice", [whole, *bounds], node.output))
            node.output[0] = whole
    g.initializers.extend(tensor for tensor in graph.initializer if tensor.name not in encoder.tables)
    return graph.output[0].name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter prints its progress and warns about itself; neither helps who exports."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.TransformerEncoder has no counterpart in ONNX.
    torch.backends.mha.set_fastpath_enabled(False)
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
