"""Small ONNX files as other exporters write them: the weighted sum of the history's rows, times the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ITEMS, DIM, WIDTH = 30, 4, 6


@dataclass(frozen=True)
class File:
    """The traits of a file. Rows `before` the first item's are for padding or a mask, rows `behind` for a mask."""

    names: tuple[str, ...] = ("input_ids",)
    kind: int = TensorProto.INT64
    before: int = 1
    behind: int = 0
    stepwise: bool = False
    batch: int | str = "batch"
    opset: int = 18
    width: int | str = WIDTH
    more: Sequence[str] = field(default_factory=tuple)

    @property
    def rows(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.random.default_rng(7).normal(size=(self.before + ITEMS + self.behind, DIM)).astype(np.float32)

    def write(self, path: Path) -> Path:
        """Each place's state is the running sum of rows, weighed by their place in the width."""
        history = self.names[0]
        weights = np.arange(1, WIDTH + 1, dtype=np.float32).reshape(1, WIDTH, 1)
        constants = {"table": self.rows, "weights": weights, "turned": self.rows.T.copy(), "axis": np.array(1)}
        nodes = [
            helper.make_node("Gather", ["table", history], ["rows"]),
            helper.make_node("Mul", ["rows", "weights"], ["weighed"]),
            helper.make_node("CumSum", ["weighed", "axis"], ["states"]),
        ]
        states = "states"
        if len(self.names) > 1 and not self.stepwise:
            constants |= {"one": np.array(1, np.int64), "last": np.array([-1])}
            nodes += [
                helper.make_node("Cast", [self.names[1]], ["length"], to=TensorProto.INT64),
                helper.make_node("Sub", ["length", "one"], ["place"]),
                helper.make_node("Unsqueeze", ["place", "last"], ["places"]),
                helper.make_node("GatherND", ["states", "places"], ["state"], batch_dims=1),
            ]
            states = "state"
        elif not self.stepwise:
            constants["end"] = np.array(-1)
            nodes.append(helper.make_node("Gather", ["states", "end"], ["state"], axis=1))
            states = "state"
        nodes.append(helper.make_node("MatMul", [states, "turned"], ["logits"]))
        columns = len(self.rows)
        shape = (self.batch, self.width, columns) if self.stepwise else (self.batch, columns)
        inputs = [helper.make_tensor_value_info(history, self.kind, (self.batch, self.width))]
        inputs += [helper.make_tensor_value_info(name, self.kind, (self.batch,)) for name in self.names[1:]]
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, (self.batch, 3)) for name in self.more]
        graph = helper.make_graph(
            nodes,
            "foreign",
            inputs,
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path

    def scores(self, ids: Sequence[int], start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Scores of the items where these ids stand from the place `start` on, and row 0 before them."""
        rows = self.rows.astype(np.float64)
        places = [0] * start + list(ids)
        state = sum(((place + 1) * rows[row] for place, row in enumerate(places)), np.zeros(DIM))
        scored: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = rows[self.before : self.before + ITEMS] @ state
        return scored


def branching(path: Path, on: str, output: str) -> Path:
    """The same file, where an output below 0 becomes 0 if the largest `on` of the batch is odd."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["given" if name == output else name for name in node.output]

    def body(kind: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(kind, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, ["given"], [kind])], kind, [], [made])

    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "two"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", [on], ["largest"], keepdims=0),
            helper.make_node("Mod", ["largest", "two"], ["rest"]),
            helper.make_node("Cast", ["rest"], ["odd"], to=TensorProto.BOOL),
            helper.make_node(
                "If", ["odd"], [output], name="asks", then_branch=body("Relu"), else_branch=body("Identity")
            ),
        ]
    )
    onnx.save(model, path)
    return path
