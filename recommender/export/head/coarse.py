"""Coarse scores: the item table in 8 bits, which finds the blocks worth an exact look, and a proof that it found them.

A single user's scores cost as much as reading the table, so a table of a quarter of the bytes is read in its place.
Column j of the table is coded as whole numbers q between -127 and 127: e ≈ middle_j + step_j · q. A user vector u is
folded with the steps, w = u · step, and coded as whole numbers p between -63 and 63: w ≈ p · s. Products p · q sum up
exactly in 32 bits; with p in 7 bits no CPU saturates, VNNI or not. So the coarse score of an item is

    a = u · middle + s · Σ p q,    |u·e - a|  ≤  |u| · max|e - middle - step q|  +  |w - s p| · max|q|

by Cauchy and Schwarz, with Euclidean norms; the maxima are over all items, known at export, and the norms of u and
of w's rest are measured for every user. What rounding in float32 adds is bounded by the number of columns.

Only too low a coarse score could lose an item. So a bias far below the others is coded as if it were higher: one item
at -1e9 would otherwise take all the steps of its column, and nothing could be proven.

The blocks with the largest coarse maxima are scored exactly. If the K-th best score found lies above the largest
coarse maximum left out plus this bound, nothing left out can be among the K best, equal scores included. A batch in
which one row fails this test is ranked from float32 slabs as a whole; `fallbacks` tells which rows failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.export.head.selection import FLOAT, UINT8, flat_places, mask_in_place
from recommender.export.nodes import Nodes
from recommender.export.table import Layout

# Blocks looked at exactly for each wanted item, and on top of that: fewer make the test fail, more cost time.
_BLOCKS_PER_ITEM, _MORE_BLOCKS = 8, 56
_USER_CODES = 63
_ITEM_CODES = 127
# Below every sum of products, and exact in float32.
_LOWEST = -(2**30)


@dataclass(frozen=True, slots=True)
class Codes:
    """A table in 8 bits: `codes` int8 [columns, rows] with what the bound needs."""

    codes: npt.NDArray[np.int8]
    middle: npt.NDArray[np.float32]
    step: npt.NDArray[np.float32]
    item_error: float  # max |e - middle - step q|
    code_norm: float  # max |q|
    vector_norm: float  # max |e|

    @classmethod
    def of(cls, table: npt.NDArray[np.float32], layout: Layout, *, bias: bool = False) -> Codes:
        """Code a packed table without `NEVER`; `bias` says that its last column is one.

        Norms are taken in float64, over real items.
        """
        items = table[: layout.items]
        if bias:
            items = np.column_stack([items[:, :-1], _raised(items)])
        low, high = items.min(axis=0).astype(np.float64), items.max(axis=0).astype(np.float64)
        middle = ((low + high) / 2).astype(np.float32)
        step = np.maximum((high - low) / (2 * _ITEM_CODES), np.finfo(np.float32).tiny).astype(np.float32)
        codes = np.zeros((layout.columns, layout.rows), np.int8)
        error = code_norm = vector_norm = 0.0
        for start in range(0, layout.items, 1 << 16):
            rows = items[start : start + (1 << 16)].astype(np.float64)
            coded = np.clip(np.rint((rows - middle) / step), -_ITEM_CODES, _ITEM_CODES)
            codes[:, start : start + len(rows)] = coded.T
            rest = rows - middle - coded * step
            error = max(error, float(np.linalg.norm(rest, axis=1).max()))
            code_norm = max(code_norm, float(np.linalg.norm(coded, axis=1).max()))
            vector_norm = max(vector_norm, float(np.linalg.norm(rows, axis=1).max()))
        return cls(codes, middle, step, error, code_norm, vector_norm)


def _raised(items: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The biases, the last column of `items`, with those that lie far below the others raised to a bound."""
    embeddings, bias = items[:, :-1], items[:, -1]
    middle = np.median(bias)
    spread = max(float(bias.max() - middle), float(np.ptp(embeddings)))
    return np.maximum(bias, np.float32(middle - 2 * spread))


def most_wanted(blocks: int) -> int:
    """The largest k for which coarse scores may choose among this many blocks; below 1 there are too few."""
    return (blocks - _MORE_BLOCKS - 1) // _BLOCKS_PER_ITEM


@dataclass(frozen=True, slots=True)
class CoarseChoice:
    """Names of what coarse scores say: the blocks to look at, and the score that nothing left out can exceed."""

    blocks: str  # int64 [batch, m, 1], ascending
    edge: str  # float32 [batch, 1]


def add_coarse_scores(g: Nodes, users: str, pairs: str, codes: Codes, layout: Layout) -> str:
    """Sums of products of codes, masked: int32 [batch, rows]. To stand at the top level, as packing needs it."""
    small, _ = _coded_users(g, users, codes)
    table = g.constant(codes.codes)
    sums = g.op("MatMulInteger", small, table, g.constant(np.array(_USER_CODES + 1, np.uint8)))
    rows = layout.rows
    return mask_in_place(
        g, sums, flat_places(g, pairs, g.int64(rows)), g.int64(-1, rows), lowest=np.array(_LOWEST, np.int32)
    )


def choose_blocks(g: Nodes, users: str, sums: str, codes: Codes, layout: Layout) -> CoarseChoice:
    """The blocks whose largest coarse scores are best, and the bound for all others."""
    last = g.int64(-1)
    maxima = g.op("ReduceMax", g.op("Reshape", sums, g.int64(0, -1, layout.block)), g.int64(2), keepdims=0)
    if layout.rows // layout.block > layout.full_blocks:
        maxima = g.op("Slice", maxima, g.int64(0), g.int64(layout.full_blocks), g.int64(1))
    number = g.op("Add", g.op("Mul", "k", g.int64(_BLOCKS_PER_ITEM)), g.int64(_MORE_BLOCKS))
    best, order = g.ops("TopK", 2, maxima, g.op("Add", number, g.int64(1)), axis=1)
    chosen = g.op("Slice", order, g.int64(0), number, g.int64(1))
    blocks, _ = g.ops("TopK", 2, chosen, number, axis=1, largest=0)
    left_out = g.op("Cast", g.op("Slice", best, last, g.int64(np.iinfo(np.int64).max), g.int64(1)), to=FLOAT)

    coded, scale = _coded_users(g, users, codes)
    middle = g.op("MatMul", users, g.constant(codes.middle.reshape(-1, 1)))
    folded = g.op("Mul", users, g.constant(codes.step))
    exact = g.op("Sub", g.op("Cast", coded, to=FLOAT), g.float32(_USER_CODES + 1))
    eps = float(np.finfo(np.float32).eps)
    rest = g.op(
        "Add",
        g.op("ReduceL2", g.op("Sub", folded, g.op("Mul", exact, scale)), g.int64(1), keepdims=1),
        g.op("Mul", g.op("ReduceL2", folded, g.int64(1), keepdims=1), g.float32(4 * eps)),
    )
    norm = g.op("ReduceL2", users, g.int64(1), keepdims=1)
    # Rounding of the score found, of the score that brute force finds, and of the coarse one: each is below
    # columns · eps · |u| · |e|.
    rounding = 4 * (layout.columns + 2) * eps
    item_share = 1.001 * (codes.item_error + rounding * (codes.vector_norm + float(np.linalg.norm(codes.middle))))
    user_share = 1.001 * codes.code_norm
    bound = g.op("Add", g.op("Mul", norm, g.float32(item_share)), g.op("Mul", rest, g.float32(user_share)))
    edge = g.op("Add", g.op("Add", middle, g.op("Mul", left_out, scale)), bound)
    return CoarseChoice(g.op("Unsqueeze", blocks, g.int64(2)), edge)


def proven(g: Nodes, scores: str, edge: str) -> str:
    """Which rows' K best, `scores` [batch, k] best first, lie above the edge: bool [batch, 1]."""
    worst = g.op("Slice", scores, g.int64(-1), g.int64(np.iinfo(np.int64).max), g.int64(1))
    return g.op("Greater", worst, edge)


def _coded_users(g: Nodes, users: str, codes: Codes) -> tuple[str, str]:
    """User codes uint8 [batch, columns], shifted by 64, and each row's scale, float32 [batch, 1]."""
    folded = g.op("Mul", users, g.constant(codes.step))
    largest = g.op("ReduceMax", g.op("Abs", folded), g.int64(1), keepdims=1)
    scale = g.op("Max", g.op("Div", largest, g.float32(_USER_CODES)), g.float32(float(np.finfo(np.float32).tiny)))
    coded = g.op("Round", g.op("Div", folded, scale))
    shifted = g.op("Clip", g.op("Add", coded, g.float32(_USER_CODES + 1)), g.float32(1), g.float32(2 * _USER_CODES + 1))
    return g.op("Cast", shifted, to=UINT8), scale
