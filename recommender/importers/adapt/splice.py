"""The adapter's graph: our inputs, turned to what a foreign graph reads, and its scores, turned to ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from recommender.export.encoder import OPSET
from recommender.export.errors import ExportError
from recommender.export.nodes import Nodes
from recommender.export.obstacles import sentence
from recommender.importers.adapt.foreign import Foreign

_PREFIX = "theirs."


def splice(g: Nodes, foreign: Foreign) -> str:
    """Add the foreign graph to `g`; returns the name of its scores, float32 [batch, items]."""
    model = of_our_opset(foreign.path, foreign.model)
    graph = onnx.compose.add_prefix(model, _PREFIX).graph
    g.initializers.extend(graph.initializer)
    ids, length, real = foreign.filling.add(g, "user_history", "history_length")
    feeds = {foreign.history: ids}
    if foreign.length is not None:
        feeds[foreign.length] = length
    if foreign.mask is not None:
        feeds[foreign.mask] = real
    cast = {name: g.op("Cast", value, to=foreign.types[name]) for name, value in feeds.items()}
    yielded = _rows(g, graph, foreign, cast) if foreign.single else _whole(g, graph, foreign, cast)
    if foreign.stepwise:
        last = g.op("Sub", length, g.int64(1)) if foreign.filling.side == "right" else None
        if last is None:
            yielded = g.op("Gather", yielded, g.constant(np.array(-1)), axis=1)
        else:
            yielded = g.op("GatherND", yielded, g.op("Unsqueeze", last, g.int64(-1)), batch_dims=1)
    end = foreign.first_column + foreign.items
    kept = g.op("Slice", yielded, g.int64(foreign.first_column), g.int64(end), g.int64(1))
    return g.op("Cast", kept, to=TensorProto.FLOAT)


def of_our_opset(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the operators' version that the head has; raises ExportError if it has others than ONNX's own."""
    versions = {each.domain: each.version for each in model.opset_import}
    others = sorted(versions.keys() - {"", "ai.onnx"})
    if others:
        raise ExportError(f"{path} has operators of {', '.join(others)}; only those of ONNX itself are adapted.")
    if versions.get("", versions.get("ai.onnx")) == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's errors have no common base
        raise ExportError(
            f"{path} has operators of version {versions.get('')}, which cannot be turned to {OPSET}: "
            f"{sentence(error)}. Export it with opset {OPSET}."
        ) from error


def _whole(g: Nodes, graph: onnx.GraphProto, foreign: Foreign, feeds: dict[str, str]) -> str:
    """The foreign nodes over the whole batch."""
    g.nodes.extend(helper.make_node("Identity", [value], [_PREFIX + name]) for name, value in feeds.items())
    g.nodes.extend(graph.node)
    return _PREFIX + foreign.output


def _rows(g: Nodes, graph: onnx.GraphProto, foreign: Foreign, feeds: dict[str, str]) -> str:
    """The foreign nodes over one row after the other."""

    def body(inner: Nodes) -> tuple[str, ...]:
        for name in feeds:
            alone = inner.op("Unsqueeze", f"row.{name}", inner.int64(0))
            inner.nodes.append(helper.make_node("Identity", [alone], [_PREFIX + name]))
        inner.nodes.extend(graph.node)
        return (inner.op("Squeeze", _PREFIX + foreign.output, inner.int64(0)),)

    inputs = [helper.make_tensor_value_info(f"row.{name}", foreign.types[name], None) for name in feeds]
    run = g.subgraph("row", body, (TensorProto.FLOAT,), inputs)
    (output,) = g.ops("Scan", 1, *feeds.values(), body=run, num_scan_inputs=len(feeds))
    return output
