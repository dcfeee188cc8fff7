"""Coded users: user vectors folded with the steps of the codes, as whole numbers, with what is known of their error.

The bounds are derived in `coarse.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from recommender.export.head.codes import ZERO, Codes
from recommender.export.head.selection import FLOAT
from recommender.export.nodes import Nodes

INT8 = TensorProto.INT8
_USER_CODES = 63
DIGIT = 126
LOWEST_SUM = -(2**30)
"""Below every sum of products, and exact in float32."""
_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class CodedUsers:
    """Names of what is known of the users, all float32 [batch, …] but `digits`."""

    vectors: str  # [batch, columns]
    digits: str  # p and t, int8 [batch, columns, 2]
    scale: str  # s [batch, 1]
    middle: str  # u · middle [batch, 1]
    of_blocks: str  # bound of |u·e - a| [batch, 1]
    of_items: str  # bound of |u·e - f| [batch, 1]

    @classmethod
    def of(cls, g: Nodes, vectors: str, codes: Codes) -> CodedUsers:
        """Code these vectors.

        Norms are taken of numbers near 1, so that no square is 0 or infinite. Where numbers are so small that
        they are rounded to more than a share of themselves, `tiny` is more than what that adds.
        """
        one, tiny = g.int64(1), g.float32(float(np.finfo(np.float32).tiny))
        folded = g.op("Mul", vectors, g.constant(codes.step))
        scale = g.op("Max", g.op("Div", _largest(g, folded), g.float32(_USER_CODES)), tiny)
        exact = g.op("Div", folded, scale)
        first = _digit(g, exact)
        rest = g.op("Sub", exact, first)
        second = _digit(g, g.op("Mul", rest, g.float32(DIGIT)))
        finer = g.op("Sub", rest, g.op("Mul", second, g.float32(1 / DIGIT)))
        largest = g.op("Max", _largest(g, vectors), tiny)
        norm = g.op("Mul", largest, g.op("ReduceL2", g.op("Div", vectors, largest), one, keepdims=1))
        # Rounding of the score found, of the score that brute force finds, and of the coarse one: each is below
        # columns · eps · |u| · |e|.
        rounding = 4 * (len(codes.step) + 4) * _EPS
        item_share = 1.001 * (codes.item_error + rounding * (codes.vector_norm + float(np.linalg.norm(codes.middle))))
        of_all = g.op("Add", g.op("Mul", norm, g.float32(item_share)), tiny)
        slack = g.op("Mul", g.op("ReduceL2", exact, one, keepdims=1), g.float32(4 * _EPS))

        def bound(rest: str) -> str:
            length = g.op("Add", g.op("ReduceL2", rest, one, keepdims=1), slack)
            return g.op("Add", of_all, g.op("Mul", g.op("Mul", length, scale), g.float32(1.001 * codes.code_norm)))

        digits = [g.op("Unsqueeze", g.op("Cast", digit, to=INT8), g.int64(2)) for digit in (first, second)]
        return cls(
            vectors=vectors,
            digits=g.op("Concat", *digits, axis=2),
            scale=scale,
            middle=g.op("MatMul", vectors, g.constant(codes.middle.reshape(-1, 1))),
            of_blocks=bound(rest),
            of_items=bound(finer),
        )

    def finer(self, g: Nodes, codes: str) -> str:
        """Σ (p + t / 126) q of the items with these codes, uint8 [batch, m, columns]: float32 [batch, m]."""
        sums = g.op("MatMulInteger", codes, self.digits, g.constant(np.array(ZERO, np.uint8)))
        weights = g.constant(np.array([[1], [1 / DIGIT]], np.float32))
        return g.op("Squeeze", g.op("MatMul", g.op("Cast", sums, to=FLOAT), weights), g.int64(2))

    def most(self, g: Nodes, sums: str, bound: str) -> str:
        """The largest score that an item with such a sum, float32 [batch, n], can have."""
        return g.op("Add", g.op("Mul", sums, self.scale), g.op("Add", self.middle, bound))


def _largest(g: Nodes, rows: str) -> str:
    """The largest absolute value of each row: float32 [batch, 1]."""
    return g.op("ReduceMax", g.op("Abs", rows), g.int64(1), keepdims=1)


def _digit(g: Nodes, values: str) -> str:
    """The nearest code, as float32."""
    return g.op("Clip", g.op("Round", values), g.float32(-_USER_CODES), g.float32(_USER_CODES))
