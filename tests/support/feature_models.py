"""Models made by hand that take features: each adds a vector to that of the history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from recommender.models.vocabulary import write_vocabulary

SIZE = 8
CITIES = ("rome", "oslo", "köln")
DECLARED: tuple[dict[str, Any], ...] = (
    {"name": "age", "type": "float32", "default": 30.0, "minimum": 0.0, "maximum": 120.0},
    {"name": "city", "type": "string", "default": "oslo", "vocabulary": "model.city", "tokens": len(CITIES)},
    {"name": "level", "type": "int64", "default": 1, "minimum": 0, "maximum": 2},
    {"name": "premium", "type": "bool", "default": False},
    {"name": "tastes", "type": "float32", "width": 2, "default": [0.5, -1.0]},
)
"""As a card has them."""

_RANDOM = np.random.default_rng(11)


def _table(*shape: int) -> npt.NDArray[np.float32]:
    return _RANDOM.normal(0, 1, shape).astype(np.float32)


_AGE, _CITY, _LEVEL, _PREMIUM, _TASTES = (
    _table(1, SIZE),
    _table(4, SIZE),
    _table(3, SIZE),
    _table(1, SIZE),
    _table(2, 8),
)
_INPUTS = {
    "age": helper.make_tensor_value_info("age", TensorProto.FLOAT, ["batch"]),
    "city": helper.make_tensor_value_info("city", TensorProto.INT64, ["batch"]),
    "level": helper.make_tensor_value_info("level", TensorProto.INT64, ["batch"]),
    "premium": helper.make_tensor_value_info("premium", TensorProto.BOOL, ["batch"]),
    "tastes": helper.make_tensor_value_info("tastes", TensorProto.FLOAT, ["batch", 2]),
}


def vector_of(given: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The sum that the model adds for a request's features, float32 [size]; omitted ones have their defaults."""
    values = {each["name"]: each["default"] for each in DECLARED} | dict(given)
    city = CITIES.index(values["city"]) + 1 if values["city"] in CITIES else 0
    vector: npt.NDArray[np.float32] = (
        _AGE[0] * np.float32(values["age"] / 64)
        + _CITY[city]
        + _LEVEL[values["level"]]
        + _PREMIUM[0] * values["premium"]
        + np.array(values["tastes"], np.float32) @ _TASTES
    )
    return vector


def add_features(model: Path) -> Path:
    """Give a model file that takes users these features too; returns the file of the cities' vocabulary."""
    made = onnx.load(model)
    graph = made.graph
    for node in graph.node:
        node.input[:] = ["featured" if name == "user_vector" else name for name in node.input]
    graph.input.extend(_INPUTS.values())
    tables = {"ages": _AGE, "cities": _CITY, "levels": _LEVEL, "premiums": _PREMIUM, "taste_table": _TASTES}
    graph.initializer.extend(numpy_helper.from_array(table, name) for name, table in tables.items())
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 64, np.float32), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "column"))
    parts = ["of_age", "of_city", "of_level", "of_premium", "of_tastes"]
    nodes = [
        helper.make_node("Mul", ["age", "scale"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "column"], ["age_column"]),
        helper.make_node("MatMul", ["age_column", "ages"], ["of_age"]),
        helper.make_node("Gather", ["cities", "city"], ["of_city"]),
        helper.make_node("Gather", ["levels", "level"], ["of_level"]),
        helper.make_node("Cast", ["premium"], ["premium_number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["premium_number", "column"], ["premium_column"]),
        helper.make_node("MatMul", ["premium_column", "premiums"], ["of_premium"]),
        helper.make_node("MatMul", ["tastes", "taste_table"], ["of_tastes"]),
        helper.make_node("Sum", ["user_vector", *parts], ["featured"]),
    ]
    place = next(place for place, node in enumerate(graph.node) if "featured" in node.input)
    whole = [*graph.node[:place], *nodes, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(whole)
    onnx.save_model(made, model)
    vocabulary = model.with_name("model.city")
    write_vocabulary(CITIES, vocabulary)
    return vocabulary
