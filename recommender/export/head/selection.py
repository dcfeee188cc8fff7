"""Selection: masking, finding and selecting scores, and top-K over scores that a network yields itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from recommender.export.nodes import Array, Nodes

INT64, UINT8 = TensorProto.INT64, TensorProto.UINT8
FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
MASKED = float(np.nextafter(np.finfo(np.float32).min, np.float32(0)))
"""Marks a missing score inside a graph: the least that TopK orders on every device.

CUDA's TopK takes -inf, and float32's lowest, for its own filler: the position that it gives such a score is wrong.
"""
LOWEST: Array = np.array(MASKED, np.float32)


def add_selection(g: Nodes, scores: str, items: int, never: Sequence[int] = ()) -> dict[str, str]:
    """Add top-K over scores that a network yields itself, float32 [batch, items]; the same inputs and outputs.

    A score that is not a number or not above `MASKED` counts as -inf, and so do those of the items in `never`.
    """
    lowest = g.float32(MASKED)
    scores = g.op("Where", g.op("IsNaN", scores), lowest, scores)
    if never:
        barred = np.zeros((1, items), np.bool_)
        barred[0, list(never)] = True
        scores = g.op("Where", g.constant(barred), lowest, scores)
    shape, batch = g.op("Shape", scores), g.op("Shape", scores, start=0, end=1)
    width = g.op("Shape", scores, start=1, end=2)
    scores = mask_in_place(g, scores, flat_places(g, "excluded", width), shape)

    def from_candidates(inner: Nodes) -> tuple[str, str]:
        own = inner.op("GatherElements", scores, "candidates", axis=1)
        own = inner.op("Max", inner.op("Where", real_candidates(inner), own, lowest), lowest)
        return select_filled(inner, "candidates", own, batch)

    def from_all(inner: Nodes) -> tuple[str, str]:
        best, ids = inner.ops("TopK", 2, scores, "k", axis=1)
        return ids, best

    some = g.op("Greater", g.op("Shape", "candidates", start=1, end=2), g.int64(0))
    ids, scores = g.choose(some, from_candidates, from_all, (INT64, FLOAT))
    real = g.op("Greater", scores, lowest)
    return {
        "recommendations": g.op("Where", real, ids, g.int64(-1)),
        "scores": g.op("Where", real, scores, g.float32(-np.inf)),
    }


def places(g: Nodes, *axes: str) -> str:
    """One int64 [nnz] per axis as int64 [nnz, axes]."""
    return g.op("Concat", *(g.op("Unsqueeze", axis, g.int64(-1)) for axis in axes), axis=1)


def mask(g: Nodes, scores: str, places: str, keep: str, lowest: float = MASKED) -> str:
    """A copy of `scores` with `lowest` at these places, int64 [nnz, axes]; of those only where `keep` is true."""
    places = g.op("Compress", places, keep, axis=0)
    each = g.op("Expand", g.float32(lowest), g.op("Shape", places, start=0, end=1))
    return g.op("ScatterND", scores, places, each)


def mask_in_place(g: Nodes, scores: str, places: str, shape: str, lowest: Array = LOWEST) -> str:
    """Put `lowest` at these places, int64 [nnz], of `scores` flattened to one row; the cost is the length of `places`.

    `shape` is that of `scores`. ScatterND copies all of its data. ScatterElements does not, if nothing else reads them
    and data and result are known to have one shape.
    """
    flat = g.op("Reshape", scores, g.int64(-1))
    each = g.op("Expand", g.constant(lowest), g.op("Shape", places))
    masked = g.op("ScatterElements", flat, places, each, axis=0)
    for name in (flat, masked):
        g.declare(name, helper.np_dtype_to_tensor_dtype(lowest.dtype), (scores,))
    return g.op("Reshape", masked, shape)


def flat_places(g: Nodes, pairs: str, width: str) -> str:
    """Pairs (row, column) int64 [nnz, 2] of a matrix `width` wide as places in it counted as one row: int64 [nnz]."""
    row, column = (g.op("Gather", pairs, g.constant(np.array(part)), axis=1) for part in (0, 1))
    return g.op("Add", g.op("Mul", row, width), column)


def search(g: Nodes, known: str, rows: str, sought: str) -> tuple[str, str]:
    """Binary search in `known` int64 [batch, m], ascending in each row: `sought` [nnz] in `rows` [nnz].

    Returns the column, int64 [nnz], and whether `sought` is there, bool [nnz].
    """
    last, two = g.int64(-1), g.int64(2)
    width = g.op("Shape", known, start=1, end=2)
    end = g.op("Sub", width, g.int64(1))
    low = g.op("Expand", g.int64(0), g.op("Shape", sought))
    high = g.op("Expand", end, g.op("Shape", sought))
    bits = g.op("Ceil", g.op("Div", g.op("Log", g.op("Cast", width, to=FLOAT)), g.float32(float(np.log(2)))))
    steps = g.op("Squeeze", g.op("Add", g.op("Cast", bits, to=INT64), g.int64(1)))

    def at(inner: Nodes, column: str) -> str:
        pairs = [inner.op("Unsqueeze", part, last) for part in (rows, column)]
        return inner.op("GatherND", known, inner.op("Concat", *pairs, axis=1))

    step = helper.make_tensor_value_info(g.fresh("step"), INT64, [])
    go_on = helper.make_tensor_value_info(g.fresh("go_on"), BOOL, [])
    lows = helper.make_tensor_value_info(g.fresh("low"), INT64, [None])
    highs = helper.make_tensor_value_info(g.fresh("high"), INT64, [None])

    def halve(inner: Nodes) -> tuple[str, ...]:
        middle = inner.op("Div", inner.op("Add", lows.name, highs.name), two)
        right = inner.op("Less", at(inner, middle), sought)
        upper = inner.op("Min", inner.op("Add", middle, inner.int64(1)), end)
        return (
            go_on.name,
            inner.op("Where", right, upper, lows.name),
            inner.op("Where", right, highs.name, middle),
        )

    body = g.subgraph("halve", halve, (BOOL, INT64, INT64), (step, go_on, lows, highs))
    column, _ = g.ops("Loop", 2, steps, "", low, high, body=body)
    return column, g.op("Equal", at(g, column), sought)


def last_column(g: Nodes, rows: str) -> str:
    """The last column of each row: [batch, 1]."""
    return g.op("Slice", rows, g.int64(-1), g.int64(np.iinfo(np.int64).max), g.int64(1))


def real_candidates(g: Nodes, ids: str = "candidates", lengths: str = "candidates_length") -> str:
    """Which candidates are not padding: bool [batch, c]."""
    width = g.op("Squeeze", g.op("Shape", ids, start=1, end=2))
    zero, one = (g.constant(np.array(number, np.int64)) for number in (0, 1))
    return g.op("Less", g.op("Range", zero, width, one), g.op("Unsqueeze", lengths, g.int64(-1)))


def select_filled(g: Nodes, ids: str, scores: str, batch: str) -> tuple[str, str]:
    """The `k` best of `scores` [batch, m] where m may be below `k`."""
    filler = g.op("Expand", g.float32(MASKED), g.op("Concat", batch, "k", axis=0))
    scores = g.op("Concat", scores, filler, axis=1)
    ids = g.op("Concat", ids, g.op("Expand", g.int64(-1), g.op("Shape", filler)), axis=1)
    return select(g, ids, scores, "k")


def select(g: Nodes, ids: str, scores: str, k: str) -> tuple[str, str]:
    """The k best of `scores` with their `ids`, both [batch, m]."""
    best, position = g.ops("TopK", 2, scores, k, axis=1)
    return g.op("GatherElements", ids, position, axis=1), best
