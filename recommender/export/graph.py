"""The graph: encoder and head spliced into one model with the inputs and outputs that the engine knows."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from recommender.engine.coarse import COARSE_ROWS, EVERY_BATCH
from recommender.engine.contract import QUERY
from recommender.engine.masked.bounds import BLOCK, BOUNDED, BOUNDS
from recommender.export.encoder import OPSET
from recommender.export.head.codes import Codes
from recommender.export.head.head import add_head
from recommender.export.head.selection import add_selection
from recommender.export.networks.inputs import NOTHING, PER_ITEM, Beside
from recommender.export.nodes import Nodes
from recommender.export.table import Layout

IR_VERSION = 10  # ONNX Runtime 1.22 reads it.
_INT64, _FLOAT = TensorProto.INT64, TensorProto.FLOAT
_INPUTS = {
    "user_history": ("batch", "history"),
    "history_length": ("batch",),
    "k": (1,),
    "excluded": ("nnz", 2),
    "candidates": ("batch", "c"),
    "candidates_length": ("batch",),
}
_OUTPUTS = {
    "recommendations": (_INT64, ("batch", "returned")),
    "scores": (_FLOAT, ("batch", "returned")),
    "fallbacks": (_INT64, ("batch",)),
    QUERY: (_FLOAT, ("batch", "dim")),
    BOUNDS: (_FLOAT, ("bounded", "blocks")),
}


def build_graph(
    encode: Callable[[Nodes], str],
    layout: Layout | None,
    *,
    items: int = 0,
    largest: float = 0.0,
    bias: bool = False,
    never: Sequence[int] = (),
    codes: Codes | None = None,
    beside: Beside = NOTHING,
    metadata: Mapping[str, str] = types.MappingProxyType({}),
) -> onnx.ModelProto:
    """A whole model except for the numbers of `item_table` and `item_codes`: the writer adds these initializers.

    `encode` adds the encoder's nodes and returns the name of the user vectors; or, without a layout, of the scores of
    all `items`. The rows of `beside` give types and shapes of the inputs besides histories. The table has `NEVER` for
    the items in `never`; other arguments are those of `add_head`.
    """
    g = Nodes()
    encoded = encode(g)
    if layout is None:
        outputs = add_selection(g, encoded, items, never)
    else:
        outputs = add_head(g, encoded, layout, largest=largest, bias=bias, codes=codes, never=bool(never))
        outputs[QUERY] = encoded
    g.nodes.extend(helper.make_node("Identity", [value], [name]) for name, value in outputs.items())
    ports = [helper.make_tensor_value_info(name, _INT64, shape) for name, shape in _INPUTS.items()]
    ports += [_input(name, values) for name, values in beside.items()]
    if codes is not None:
        # An input with a default: a caller that does not know it may omit it.
        ports.append(helper.make_tensor_value_info(COARSE_ROWS, _INT64, (2,)))
        g.initializers.append(numpy_helper.from_array(EVERY_BATCH, COARSE_ROWS))
    if layout is not None and BOUNDS in outputs:
        ports.append(helper.make_tensor_value_info(BOUNDED, _INT64, ("bounded",)))
        g.initializers.append(numpy_helper.from_array(np.empty(0, np.int64), BOUNDED))
        metadata = {**metadata, BLOCK: str(layout.block)}
    graph = helper.make_graph(
        g.nodes,
        "recommender",
        ports,
        [helper.make_tensor_value_info(name, *_OUTPUTS[name]) for name in outputs],
        g.initializers,
        value_info=g.declared,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="recommender"
    )
    describe(model, metadata)
    return model


def _input(name: str, values: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    """The declaration of an input besides the history."""
    shape = _INPUTS["user_history"] if name in PER_ITEM else ("batch", *values.shape[1:])
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), shape)


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Store these facts in the file itself, for when its card is lost."""
    helper.set_model_props(model, {f"recommender.{key}": value for key, value in metadata.items()})
