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
