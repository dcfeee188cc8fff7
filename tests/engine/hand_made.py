"""Small ONNX files made by hand, in the forms that models come in and in forms that they must not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]

_OPSET = 18
_IR_VERSION = 10


def table(items: int = 50, size: int = 4, seed: int = 0) -> Floats:
    """Item embeddings [items, size] whose scores have no ties."""
    return np.random.default_rng(seed).random((items, size), np.float32)


def brute_force(embeddings: Floats, history: Sequence[int], k: int) -> list[int]:
    """The best k ids for a history by a full sort, ties by the lower id."""
    scores = embeddings @ embeddings[list(history)].mean(axis=0)
    return [int(item) for item in np.argsort(-scores, kind="stable")[:k]]


def batched(
    path: Path,
    embeddings: Floats,
    *,
    k: int | None = None,
    metadata: Mapping[str, str] | None = None,
    external: bool = False,
    extra_inputs: Sequence[onnx.ValueInfoProto] = (),
) -> Path:
    """Write a model of the batched form; `k` fixes the number it returns, None makes it an input."""
    inputs = [
        helper.make_tensor_value_info("user_history", TensorProto.INT64, ["batch", "history"]),
        helper.make_tensor_value_info("history_length", TensorProto.INT64, ["batch"]),
        *extra_inputs,
    ]
    constants = [
        numpy_helper.from_array(embeddings, "table"),
        *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("one", [1]), ("zero", 0))),
        numpy_helper.from_array(np.array(1, np.int64), "step"),
    ]
    if k is None:
        inputs.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    else:
        constants.append(numpy_helper.from_array(np.array([k], np.int64), "k"))
    nodes = [
        helper.make_node("Gather", ["table", "user_history"], ["items"], "items"),
        helper.make_node("Shape", ["user_history"], ["shape"], "shape", start=1, end=2),
        helper.make_node("Squeeze", ["shape"], ["longest"], "longest"),
        helper.make_node("Range", ["zero", "longest", "step"], ["places"], "places"),
        helper.make_node("Unsqueeze", ["history_length", "one"], ["lengths"], "lengths"),
        helper.make_node("Less", ["places", "lengths"], ["real"], "real"),
        helper.make_node("Cast", ["real"], ["weights"], "weights", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "two"], ["mask"], "mask"),
        helper.make_node("Mul", ["items", "mask"], ["masked"], "masked"),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"], "sum", keepdims=0),
        helper.make_node("Cast", ["lengths"], ["count"], "count", to=TensorProto.FLOAT),
        helper.make_node("Div", ["sum", "count"], ["user"], "user"),
        helper.make_node("Gemm", ["user", "table"], ["all_scores"], "score", transB=1),
        helper.make_node("TopK", ["all_scores", "k"], ["scores", "recommendations"], "top"),
    ]
    constants.append(numpy_helper.from_array(np.array([2], np.int64), "two"))
    outputs = [
        helper.make_tensor_value_info("recommendations", TensorProto.INT64, ["batch", k or "k"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", k or "k"]),
    ]
    return save(path, nodes, inputs, outputs, constants, metadata, external=external)


def unbatched(path: Path, embeddings: Floats, k: int) -> Path:
    """Write a model of the older form: one history in, the best k ids out, no scores."""
    nodes = [
        helper.make_node("Gather", ["table", "user_history"], ["items"], "items"),
        helper.make_node("ReduceMean", ["items", "zeroth"], ["user"], "user", keepdims=1),
        helper.make_node("Gemm", ["user", "table"], ["all_scores"], "score", transB=1),
        helper.make_node("Squeeze", ["all_scores", "zeroth"], ["flat"], "flat"),
        helper.make_node("TopK", ["flat", "k"], ["scores", "recommendations"], "top"),
    ]
    constants = [
        numpy_helper.from_array(embeddings, "table"),
        numpy_helper.from_array(np.array([0], np.int64), "zeroth"),
        numpy_helper.from_array(np.array([k], np.int64), "k"),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("user_history", TensorProto.INT64, ["history"])],
        [helper.make_tensor_value_info("recommendations", TensorProto.INT64, [k])],
        constants,
    )


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[TensorProto] = (),
    metadata: Mapping[str, str] | None = None,
    *,
    external: bool = False,
) -> Path:
    """Write any graph at all."""
    graph = helper.make_graph(nodes, "hand made", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=1024)
    return path


def shape_only(path: Path) -> Path:
    """Write a graph that does nothing but look at a shape."""
    return save(
        path,
        [helper.make_node("Shape", ["x"], ["shape"], "shape")],
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
    )


def endless(path: Path) -> Path:
    """Write a model of the older form that never comes to an end of its own."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["go_on"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
        ],
    )
    nodes = [
        helper.make_node("Slice", ["user_history", "zero", "one"], ["first"], "first"),
        helper.make_node("Loop", ["", "true", "first"], ["recommendations"], "loop", body=body),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array(1, np.bool_), "true"),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("user_history", TensorProto.INT64, ["history"])],
        [helper.make_tensor_value_info("recommendations", TensorProto.INT64, [1])],
        constants,
    )
