"""Small model files for tests, made by hand so that each can be wrong in one way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR = 18, 9


def table(items: int = 50, dim: int = 8, seed: int = 7) -> npt.NDArray[np.float32]:
    """Item embeddings [items, dim], the same for the same seed."""
    return np.random.default_rng(seed).random((items, dim), dtype=np.float32)


def write_model(
    path: Path,
    embeddings: npt.NDArray[np.float32],
    *,
    default_k: int = 5,
    metadata: Mapping[str, str] | None = None,
    burn: int = 0,
) -> Path:
    """A model of the contract with the input `k`: mean of the history's embeddings, dot product, TopK.

    Each of `burn` rounds multiplies a 512 × 512 matrix, so that a run takes its time.
    """
    nodes = [
        helper.make_node("Shape", ["user_history"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["longest"]),
        helper.make_node("Range", ["zero", "longest", "one"], ["places"]),
        helper.make_node("Unsqueeze", ["history_length", "axis_1"], ["length"]),
        helper.make_node("Less", ["places", "length"], ["real"]),
        helper.make_node("Cast", ["real"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "axis_1"], ["weights"]),
        helper.make_node("Gather", ["table", "user_history"], ["embedded"]),
        helper.make_node("MatMul", ["weights", "embedded"], ["summed"]),
        helper.make_node("Squeeze", ["summed", "axis_1"], ["sum"]),
        helper.make_node("Cast", ["length"], ["divisor"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["sum", "divisor"], ["user"]),
        helper.make_node("Gemm", ["user", "table"], ["products"], transB=1),
    ]
    constants = [
        numpy_helper.from_array(embeddings, "table"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array([1]), "axis_1"),
    ]
    scores = "products"
    if burn:
        constants += [
            numpy_helper.from_array(np.zeros((512, 512), np.float32), "fuel"),
            numpy_helper.from_array(np.zeros((1, 512), np.float32), "thin"),
            numpy_helper.from_array(np.ones((len(embeddings.T), 512), np.float32), "wide"),
        ]
        nodes += [
            helper.make_node("MatMul", ["user", "wide"], ["spread"]),
            helper.make_node("ReduceMax", ["spread"], ["largest"], keepdims=0),
            helper.make_node("Add", ["fuel", "largest"], ["burnt_0"]),
            *(
                helper.make_node("MatMul", [f"burnt_{round_}", "fuel"], [f"burnt_{round_ + 1}"])
                for round_ in range(burn)
            ),
            helper.make_node("ReduceMax", [f"burnt_{burn}"], ["ash"], keepdims=0),
            helper.make_node("Add", ["products", "ash"], ["delayed"]),
        ]
        scores = "delayed"
    nodes.append(helper.make_node("TopK", [scores, "k"], ["scores", "recommendations"]))
    inputs = [_int64("user_history", 2), _int64("history_length", 1), _int64("k", 1)]
    outputs = [_int64("recommendations", 2), helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", "k"])]
    told = {"items": str(len(embeddings)), "default_k": str(default_k), "max_k": str(len(embeddings))}
    return _write(path, nodes, inputs, outputs, constants, told if metadata is None else metadata)


def write_older_model(path: Path, embeddings: npt.NDArray[np.float32], k: int) -> Path:
    """A model of the older form: one history in, K ids out, no batch and no scores."""
    nodes = [
        helper.make_node("Gather", ["table", "user_history"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "axis_0"], ["user"], keepdims=1),
        helper.make_node("Gemm", ["user", "table"], ["products"], transB=1),
        helper.make_node("TopK", ["products", "number"], ["values", "indices"]),
        helper.make_node("Squeeze", ["indices", "axis_0"], ["recommendations"]),
    ]
    constants = [
        numpy_helper.from_array(embeddings, "table"),
        numpy_helper.from_array(np.array([0]), "axis_0"),
        numpy_helper.from_array(np.array([k]), "number"),
    ]
    return _write(path, nodes, [_int64("user_history", 1)], [_int64("recommendations", 1)], constants, {})


def _int64(name: str, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, [f"{name}_{axis}" for axis in range(rank)])


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
    metadata: Mapping[str, str],
) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    helper.set_model_props(model, {f"recommender.{key}": value for key, value in metadata.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def brute_force(embeddings: npt.NDArray[np.float32], history: tuple[int, ...], k: int) -> tuple[list[int], list[float]]:
    """The answer such a model must give, by a stable sort in double precision."""
    user = embeddings[list(history)].astype(np.float64).mean(axis=0)
    scores = embeddings.astype(np.float64) @ user
    order = np.argsort(-scores, kind="stable")[:k]
    return order.tolist(), scores[order].tolist()
