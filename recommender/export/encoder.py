"""The encoder: a network as ONNX nodes from histories to user vectors, reading the item table of the head."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import torch
from onnx import helper
from torch import nn

from recommender.export.errors import ExportError
from recommender.export.networks.inputs import NOTHING, PER_ITEM, Beside
from recommender.export.nodes import Array, Nodes
from recommender.export.obstacles import obstacle
from recommender.export.table import TABLE

Vectors = npt.NDArray[np.float32]

OPSET = 18
# torch fixes a dimension that is 0 or 1 in the example, so the example has neither.
_EXAMPLE_BATCH, _EXAMPLE_HISTORY = 3, 5
# Rows of a table of embeddings that are no item's: for padding, a mask, the unknown.
_SPECIAL_ROWS = 16
_LARGE_BYTES = 1 << 20
_LOUD = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
"""Loggers that report every step, and print whole graphs on a failure."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """A table that only looks up rows of the item table, with `before` other rows in front of those, and more behind.

    `extra` float32 [before + behind, d] are those other rows: for padding, for a mask.
    """

    before: int
    extra: Vectors


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network's `forward` in ONNX.

    `tables` are the initializers, left empty, that only look up the item table, `apart` the numbers of other large
    ones, which are left empty too: protobuf ends at two gigabytes.
    """

    model: onnx.ModelProto
    tables: Mapping[str, LookUp]
    apart: Mapping[str, Array]


def export_encoder(
    network: nn.Module, name: str, longest_history: int | None, embeddings: Vectors | None, beside: Beside = NOTHING
) -> Encoder:
    """The network's `forward` as an ONNX model with dynamic batch and history.

    `name` is used in messages. Inputs are `user_history` int64 [batch, history], `history_length` int64 [batch] and
    those of `beside`, whose rows give their types and shapes. The one output is the user vectors or the scores.
    `embeddings` float32 [items, d] are the item table, if any. A network with `onnx_model()` has that graph already.
    Raises ExportError if torch cannot export the module.
    """
    written = getattr(network, "onnx_model", None)
    if written is not None:
        taken = onnx_ir.from_proto(written())
        apart = _set_apart(taken, {})
        return Encoder(onnx_ir.to_proto(taken), {}, apart)
    width = _EXAMPLE_HISTORY if longest_history is None else min(_EXAMPLE_HISTORY, longest_history)
    history = torch.zeros((_EXAMPLE_BATCH, width), dtype=torch.int64)
    length = torch.full((_EXAMPLE_BATCH,), width, dtype=torch.int64)
    batch = torch.export.Dim("batch")
    width_name = torch.export.Dim("history", max=longest_history)
    inputs = {"user_history": history, "history_length": length}
    whole, row = {0: batch, 1: width_name}, {0: batch}
    for input_name, values in beside.items():
        shape = (width,) if input_name in PER_ITEM else values.shape[1:]
        inputs[input_name] = torch.from_numpy(np.zeros((_EXAMPLE_BATCH, *shape), values.dtype))
    others = tuple(whole if input_name in PER_ITEM else row for input_name in beside)
    shapes = (whole, row, others) if others else (whole, row)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["user_vectors"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch could not export {name} to ONNX: {obstacle(error)}. Its forward must take "
            "(user_history [batch, history], history_length [batch]) of any batch and history."
        ) from error
    if program is None:
        raise ExportError(f"torch exported nothing of {name}.")
    tables = {} if embeddings is None else _look_ups(program.model, embeddings)
    apart = _set_apart(program.model, tables)
    return Encoder(onnx_ir.to_proto(program.model), tables, apart)


def _look_ups(model: onnx_ir.Model, embeddings: Vectors) -> dict[str, LookUp]:
    """The initializers that hold the item table and only look up rows of it.

    A table that is used in another way as well stays as a second copy.
    """
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) != embeddings.ndim or tensor.shape[1] != embeddings.shape[1]:
            continue
        uses = list(value.uses())
        by_row = all(
            node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0 for node, index in uses
        )
        rows = tensor.numpy()
        others = len(rows) - len(embeddings)
        if not by_row or not 0 <= others <= _SPECIAL_ROWS:
            continue
        for before in range(others + 1):
            if np.array_equal(rows[before : before + len(embeddings)], embeddings):
                extra = np.concatenate([rows[:before], rows[before + len(embeddings) :]])
                found[name] = LookUp(before, extra.astype(np.float32))
                break
    return found


def _set_apart(model: onnx_ir.Model, tables: Mapping[str, LookUp]) -> dict[str, Array]:
    """Empty the tables and all other large initializers; returns the numbers of the latter."""
    apart = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or (name not in tables and tensor.nbytes < _LARGE_BYTES):
            continue
        if name not in tables:
            apart[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value = onnx_ir.tensor(np.zeros((1, 1), np.float32), name=name)
    return apart


def add_encoder(g: Nodes, encoder: Encoder, *, items: int, size: int, columns: int) -> str:
    """Add the encoder's nodes to `g`, its look-ups turned to the head's table; returns the name of its output.

    Embeddings are the first `size` of the table's `columns`, in its first `items` rows.
    """
    graph = encoder.model.graph
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.ClearField("metadata_props")  # Holds stack traces and paths of the exporting machine.
        node.ClearField("doc_string")
        table = encoder.tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None:
            g.nodes.append(node)
        else:
            found = _look_up(g, node.input[1], table, items=items, size=size, columns=columns)
            g.nodes.append(helper.make_node("Identity", [found], node.output))
    kept_elsewhere = {*encoder.tables, *encoder.apart}
    g.initializers.extend(tensor for tensor in graph.initializer if tensor.name not in kept_elsewhere)
    return graph.output[0].name


def _look_up(g: Nodes, ids: str, table: LookUp, *, items: int, size: int, columns: int) -> str:
    """Rows of a table by `ids` int64 of any shape, those of items from the head's table: float32 [..., size]."""
    last = g.int64(-1)

    def vectors(places: str) -> str:
        whole = g.op("Gather", TABLE, places, axis=0)
        return g.op("Slice", whole, g.int64(0), g.int64(size), last) if columns > size else whole

    if not len(table.extra):
        return vectors(ids)
    before, zero = g.int64(table.before), g.int64(0)
    place = g.op("Sub", ids, before)
    real = g.op("And", g.op("GreaterOrEqual", place, zero), g.op("Less", place, g.int64(items)))
    other = g.op("Where", g.op("Less", place, zero), ids, g.op("Max", g.op("Sub", ids, g.int64(items)), zero))
    extra = g.op("Gather", g.constant(table.extra), other, axis=0)
    return g.op("Where", g.op("Unsqueeze", real, last), vectors(g.op("Where", real, place, zero)), extra)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter prints its progress and warns about itself; neither helps a user."""
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
