"""Nodes: writes an ONNX graph as a sequence of calls, one value name in, one value name out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Array: TypeAlias = npt.NDArray[np.generic]
Attribute: TypeAlias = int | float | str | Sequence[int] | GraphProto


@dataclass(slots=True)
class _Shared:
    """Unique names and constants that a graph shares with its subgraphs."""

    count: int = 0
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    initializers: list[TensorProto] = field(default_factory=list)


class Nodes:
    """A graph or subgraph under construction; every value it makes is called `{part}.…`."""

    def __init__(self, shared: _Shared | None = None, part: str = "head") -> None:
        self.part = part
        self.nodes: list[NodeProto] = []
        self.declared: list[ValueInfoProto] = []
        self._shared = _Shared() if shared is None else shared

    @property
    def initializers(self) -> list[TensorProto]:
        """The constants of the whole graph, subgraphs included."""
        return self._shared.initializers

    def fresh(self, word: str) -> str:
        """A unique name."""
        self._shared.count += 1
        return f"{self.part}.{word}_{self._shared.count}"

    def constant(self, value: Array) -> str:
        """The name of this constant; equal constants share one."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._shared.constants:
            name = self.fresh("constant")
            self._shared.constants[key] = name
            self._shared.initializers.append(numpy_helper.from_array(value, name))
        return self._shared.constants[key]

    def int64(self, *values: int) -> str:
        """A constant int64 [len(values)]."""
        return self.constant(np.array(values, np.int64))

    def float32(self, value: float) -> str:
        """A constant float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def op(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        """Add one node with one output and return the output's name."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Attribute) -> tuple[str, ...]:
        """Add one node with several outputs and return their names."""
        names = tuple(self.fresh(kind.lower()) for _ in range(outputs))
        node = helper.make_node(kind, inputs, names, name=names[0])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return names

    def declare(self, name: str, kind: int, shape: tuple[int | str, ...]) -> None:
        """Say what shape a value has where ONNX cannot infer it."""
        self.declared.append(helper.make_tensor_value_info(name, kind, shape))

    def choose(
        self,
        condition: str,
        then: Callable[[Nodes], Sequence[str]],
        otherwise: Callable[[Nodes], Sequence[str]],
        types: Sequence[int],
    ) -> tuple[str, ...]:
        """An If: `types` are the element types of the outputs, in order."""
        return self.ops(
            "If",
            len(types),
            condition,
            then_branch=self.subgraph("then", then, types),
            else_branch=self.subgraph("else", otherwise, types),
        )

    def subgraph(
        self,
        name: str,
        build: Callable[[Nodes], Sequence[str]],
        types: Sequence[int],
        inputs: Sequence[ValueInfoProto] = (),
    ) -> GraphProto:
        """The body of an If, a Loop or a Scan; it sees every value of the graph around it."""
        inner = Nodes(self._shared, self.part)
        results = list(build(inner))
        made = {output for node in inner.nodes for output in node.output}
        # An output must be made inside: Identity covers a value that the body merely passes on.
        results = [result if result in made else inner.op("Identity", result) for result in results]
        outputs = [helper.make_tensor_value_info(*pair, None) for pair in zip(results, types, strict=True)]
        return helper.make_graph(inner.nodes, name, list(inputs), outputs, value_info=inner.declared)
