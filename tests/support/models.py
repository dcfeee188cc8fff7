"""Small ONNX files made by hand, in the forms that models come in and in forms that they must not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats: TypeAlias = npt.NDArray[np.float32]

CENTURY = 2.0**42
"""Milliseconds in which an item's weight doubles, in models that take times."""
_OPSET, _IR_VERSION = 18, 10


def table(items: int = 50, size: int = 8, seed: int = 7) -> Floats:
    """Item embeddings [items, size] whose scores have no ties, the same for the same seed."""
    return np.random.default_rng(seed).random((items, size), dtype=np.float32)


def brute_force(
    embeddings: Floats,
    history: Sequence[int],
    k: int,
    of_user: Floats | None = None,
    *,
    of_types: Floats | None = None,
    times: Sequence[int] = (),
) -> tuple[list[int], list[float]]:
    """The ids and scores that every model here must give, by a full stable sort in double precision.

    `of_user` is what the model adds to the history's vector for the user, `of_types` what it adds to each item of the
    history for its type, and `times` are those of the items, in Unix milliseconds.
    """
    items = embeddings[list(history)].astype(np.float64)
    if of_types is not None:
        items = items + of_types
    if times:
        items = items * (1 + np.array(times)[:, None] / CENTURY)
    user = items.mean(axis=0) if history else np.zeros(embeddings.shape[1])
    if of_user is not None:
        user = user + of_user
    scores = embeddings.astype(np.float64) @ user
    order = np.argsort(-scores, kind="stable")[:k]
    return order.tolist(), scores[order].tolist()


def write_model(
    path: Path,
    embeddings: Floats,
    *,
    default_k: int = 5,
    metadata: Mapping[str, str] | None = None,
    burn: int = 0,
    fails_on: int | None = None,
    flaws: Mapping[int, float] | None = None,
    external: bool = False,
    users: Floats | None = None,
    types: Floats | None = None,
    timed: bool = False,
) -> Path:
    """Write a model of the contract with the input `k`. It describes itself, or as `metadata` says.

    Each of `burn` rounds multiplies a 512 × 512 matrix, so that a run takes its time. A run fails if the item
    `fails_on` is in a history. `flaws` are those of `batched`.
    """
    told = {"items": str(len(embeddings)), "default_k": str(default_k), "max_k": str(len(embeddings))}
    facts = {f"recommender.{key}": value for key, value in (told if metadata is None else metadata).items()}
    return batched(
        path,
        embeddings,
        metadata=facts,
        burn=burn,
        fails_on=fails_on,
        flaws=flaws,
        external=external,
        users=users,
        types=types,
        timed=timed,
    )


def batched(
    path: Path,
    embeddings: Floats,
    *,
    k: int | None = None,
    metadata: Mapping[str, str] | None = None,
    burn: int = 0,
    fails_on: int | None = None,
    flaws: Mapping[int, float] | None = None,
    shifts: Mapping[int, int] | None = None,
    mask_by_value: bool = False,
    external: bool = False,
    users: Floats | None = None,
    types: Floats | None = None,
    timed: bool = False,
) -> Path:
    """Write a model of the batched form: mean of the history's embeddings, dot product, TopK.

    With `users` [rows, size] it has the input `user`, and adds that row to the mean, which is 0 for no history. With
    `types` [rows, size] it has the input `history_types`, and adds their rows to the items'. If it is `timed`, it has
    the input `history_times`, and an item's weight grows with its time.

    What `flaws` has for the items of a history is added to all scores of the row, what `shifts` has to the ids.
    With `mask_by_value` id 0 means padding to it, and it looks at no length.
    `k` fixes the number it returns, None makes it an input. Without `metadata` the file tells nothing about itself.
    """
    inputs = [_int64("user_history", "batch", "history"), _int64("history_length", "batch")]
    constants = [
        numpy_helper.from_array(embeddings, "table"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array([1]), "axis_1"),
        numpy_helper.from_array(np.array([2]), "axis_2"),
    ]
    if k is None:
        inputs.append(_int64("k", 1))
    else:
        constants.append(numpy_helper.from_array(np.array([k]), "k"))
    nodes = []
    looked_up = "user_history"
    if fails_on is not None:
        # What is looked up for it is far beyond the table.
        looked_up = "looked_up"
        constants += [
            numpy_helper.from_array(np.array(fails_on), "faulty"),
            numpy_helper.from_array(np.array(10**6), "beyond"),
        ]
        nodes += [
            helper.make_node("Equal", ["user_history", "faulty"], ["is_faulty"]),
            helper.make_node("Cast", ["is_faulty"], ["fault"], to=TensorProto.INT64),
            helper.make_node("Mul", ["fault", "beyond"], ["offset"]),
            helper.make_node("Add", ["user_history", "offset"], [looked_up]),
        ]
    nodes += [
        helper.make_node("Gather", ["table", looked_up], ["of_items"], "items"),
        *_typed_and_timed(inputs, constants, types, timed=timed),
        helper.make_node("Shape", ["user_history"], ["shape"], "shape", start=1, end=2),
        helper.make_node("Squeeze", ["shape"], ["longest"], "longest"),
        helper.make_node("Range", ["zero", "longest", "one"], ["places"], "places"),
        helper.make_node("Unsqueeze", ["history_length", "axis_1"], ["lengths"], "lengths"),
        helper.make_node("Less", ["places", "lengths"], ["real"], "real"),
        helper.make_node("Cast", ["real"], ["weight"], "weight", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "axis_2"], ["mask"], "mask"),
        helper.make_node("Mul", ["items", "mask"], ["masked"], "masked"),
        helper.make_node("ReduceSum", ["masked", "axis_1"], ["sum"], "sum", keepdims=0),
        helper.make_node("Cast", ["lengths"], ["count"], "count", to=TensorProto.FLOAT),
    ]
    vector, divisor = "mean", "count"
    if users is not None:
        vector = "user_vector"
        inputs.append(_int64("user", "batch"))
        divisor = "count_or_one"
        constants += [
            numpy_helper.from_array(users, "users"),
            numpy_helper.from_array(np.array(1, np.float32), "least"),
        ]
        nodes += [
            helper.make_node("Max", ["count", "least"], [divisor]),
            helper.make_node("Gather", ["users", "user"], ["of_user"]),
        ]
    nodes.append(helper.make_node("Div", ["sum", divisor], ["mean"], "user"))
    if users is not None:
        nodes.append(helper.make_node("Add", ["mean", "of_user"], [vector]))
    nodes.append(helper.make_node("Gemm", [vector, "table"], ["all_scores"], "score", transB=1))
    scores = "all_scores"
    if burn:
        scores = "delayed"
        constants += [
            numpy_helper.from_array(np.zeros((512, 512), np.float32), "fuel"),
            numpy_helper.from_array(np.ones((len(embeddings.T), 512), np.float32), "wide"),
        ]
        nodes += [
            helper.make_node("MatMul", [vector, "wide"], ["spread"]),
            helper.make_node("ReduceMax", ["spread"], ["largest"], keepdims=0),
            helper.make_node("Add", ["fuel", "largest"], ["burnt_0"]),
            *(
                helper.make_node("MatMul", [f"burnt_{round_}", "fuel"], [f"burnt_{round_ + 1}"])
                for round_ in range(burn)
            ),
            helper.make_node("ReduceMax", [f"burnt_{burn}"], ["ash"], keepdims=0),
            helper.make_node("Add", ["all_scores", "ash"], [scores]),
        ]
    if mask_by_value:
        (less,) = (node for node in nodes if node.op_type == "Less")
        nodes[nodes.index(less)] = helper.make_node("Greater", ["user_history", "zero"], ["real"], "real")
    if flaws is not None:
        constants.append(_by_item("flaws", flaws, np.zeros(len(embeddings), np.float32)))
        nodes += _added_by_item("flaws", scores, "flawed")
        scores = "flawed"
    found = "recommendations" if shifts is None else "found"
    nodes.append(helper.make_node("TopK", [scores, "k"], ["scores", found], "top"))
    if shifts is not None:
        constants.append(_by_item("shifts", shifts, np.zeros(len(embeddings), np.int64)))
        nodes += _added_by_item("shifts", found, "recommendations")
    returned = "returned" if k is None else k
    outputs = [
        _int64("recommendations", "batch", returned),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", returned]),
    ]
    return save(path, nodes, inputs, outputs, constants, metadata, external=external)


def _typed_and_timed(
    inputs: list[onnx.ValueInfoProto], constants: list[TensorProto], types: Floats | None, *, timed: bool
) -> list[onnx.NodeProto]:
    """The nodes from the items' own vectors, `of_items`, to those with their types and times, `items`."""
    nodes, found = [], "of_items"
    if types is not None:
        inputs.append(_int64("history_types", "batch", "history"))
        constants.append(numpy_helper.from_array(types, "types"))
        nodes += [
            helper.make_node("Gather", ["types", "history_types"], ["of_types"]),
            helper.make_node("Add", [found, "of_types"], ["typed"]),
        ]
        found = "typed"
    if timed:
        inputs.append(_int64("history_times", "batch", "history"))
        constants += [
            numpy_helper.from_array(np.array(CENTURY, np.float32), "century"),
            numpy_helper.from_array(np.array(1, np.float32), "at_first"),
        ]
        nodes += [
            helper.make_node("Cast", ["history_times"], ["moments"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["moments", "century"], ["ages"]),
            helper.make_node("Add", ["ages", "at_first"], ["growth"]),
            helper.make_node("Unsqueeze", ["growth", "axis_2"], ["growths"]),
            helper.make_node("Mul", [found, "growths"], ["timed"]),
        ]
        found = "timed"
    return [*nodes, helper.make_node("Identity", [found], ["items"])]


def _by_item(name: str, values: Mapping[int, float], each: npt.NDArray[Any]) -> TensorProto:
    for item, value in values.items():
        each[item] = value
    return numpy_helper.from_array(each, name)


def _added_by_item(name: str, rows: str, result: str) -> list[onnx.NodeProto]:
    """Add to each row what a vector has for the items of its history; padding counts as item 0."""
    return [
        helper.make_node("Gather", [name, "user_history"], [f"{name}_of_items"]),
        helper.make_node("ReduceSum", [f"{name}_of_items", "axis_1"], [f"{name}_of_rows"], keepdims=1),
        helper.make_node("Add", [rows, f"{name}_of_rows"], [result]),
    ]


def write_older_model(path: Path, embeddings: Floats, k: int) -> Path:
    """Write a model of the older form: one history in, the best k ids out, no batch and no scores."""
    nodes = [
        helper.make_node("Gather", ["table", "user_history"], ["items"], "items"),
        helper.make_node("ReduceMean", ["items", "axis_0"], ["user"], "user", keepdims=1),
        helper.make_node("Gemm", ["user", "table"], ["all_scores"], "score", transB=1),
        helper.make_node("Squeeze", ["all_scores", "axis_0"], ["flat"], "flat"),
        helper.make_node("TopK", ["flat", "k"], ["scores", "recommendations"], "top"),
    ]
    constants = [
        numpy_helper.from_array(embeddings, "table"),
        numpy_helper.from_array(np.array([0]), "axis_0"),
        numpy_helper.from_array(np.array([k]), "k"),
    ]
    return save(path, nodes, [_int64("user_history", "history")], [_int64("recommendations", k)], constants)


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
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """Write a model of the older form whose run never ends."""
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


def _int64(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)
