"""Branches on data: an ONNX graph that asks its inputs' values what to compute answers each row by its whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import GraphProto, NodeProto, helper

from recommender.export.errors import ExportError

_SIZES = ("Shape", "Size")
"""Operators whose results depend on sizes only."""


def refuse_branches(path: Path, graph: GraphProto, inputs: Sequence[str]) -> None:
    """Raise ExportError that names the first node which branches on the values of these inputs."""
    node = _branch(graph, set(inputs))
    if node is not None:
        raise ExportError(
            f"{path} branches on the values of its inputs, at {node.op_type} {node.name or node.output[0]!r}: the "
            "answer to one history would depend on others of its batch. Use Where and masks instead, and export it "
            "again."
        )


def _branch(graph: GraphProto, valued: set[str]) -> NodeProto | None:
    """The first node that branches on what depends on `valued`, to which the names of such results are added."""
    for node in graph.node:
        subgraphs = [helper.get_attribute_value(each) for each in node.attribute if each.HasField("g")]
        decides = {"If": node.input[:1], "Loop": node.input[:2]}.get(node.op_type, ())
        if valued.intersection(decides):
            return node
        reached = bool(valued.intersection(node.input))
        for inner in subgraphs:
            within = valued | {each.name for each in inner.input if reached}
            found = _branch(inner, within)
            if found is not None:
                return found
            if node.op_type == "Loop" and inner.output[0].name in within:
                return node
            reached = reached or any(each.name in within for each in inner.output)
        if reached and node.op_type not in _SIZES:
            valued.update(node.output)
    return None
