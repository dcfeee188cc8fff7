"""Ties: the head on a table of small whole numbers, where every score is exact and many are equal.

There a ranking has one right answer, so the head is held to it id by id and bit by bit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from recommender.export.artifact import write_model
from recommender.export.check import ModelFile
from recommender.export.errors import ExportError
from recommender.export.graph import build_graph
from recommender.export.head.codes import CODES, Codes
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, hide, pack
from recommender.export.truth import brute_force, masked

# Enough for several slabs; a larger catalogue has the same graph with a larger table.
_MOST_ITEMS = 200_000


def check_ties(
    items: int,
    columns: int,
    max_k: int,
    *,
    bias: bool,
    coarse: bool = False,
    never: bool = False,
    plain: bool = False,
) -> None:
    """Rank with the head that a catalogue of this shape gets; ExportError where one id or one score is not exact.

    With `never`, which needs a bias, every ninth item is never recommended.
    """
    items = items if items <= _MOST_ITEMS else _MOST_ITEMS + items % 1_000
    size = columns - bias
    random = np.random.default_rng(2)
    embeddings = random.integers(-1, 2, (items, size)).astype(np.float32)
    offsets = random.integers(-2, 3, items).astype(np.float32) if bias else None
    layout = Layout(items, columns, plain)
    table = pack(embeddings, offsets, layout)
    barred = range(0, items, 9) if never else ()
    codes = Codes.of(table, layout, bias=bias, never=barred) if coarse else None
    hide(table, barred)

    def encode(g: Nodes) -> str:
        """The user's vector is the embedding of the history's first item."""
        first = g.op("Gather", "user_history", g.constant(np.array(0, np.int64)), axis=1)
        vectors = g.op("Gather", TABLE, first, axis=0)
        return g.op("Slice", vectors, g.int64(0), g.int64(size), g.int64(-1))

    model = build_graph(encode, layout, largest=2.0, bias=bias, codes=codes, never=barred)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ties.onnx")
        write_model(model, table, path, 1 << 30, {} if codes is None else {CODES: codes.codes})
        head = ModelFile(path)
    for rows in (1, 7, 40):
        users = random.integers(0, items, rows)
        scores = embeddings[users] @ embeddings.T + (0 if offsets is None else offsets)
        scores[:, list(barred)] = -np.inf
        for k in sorted({1, min(10, max_k), min(64, max_k), max_k}):
            best = brute_force(scores, k).ids
            excluded = [(row, int(item)) for row in range(0, rows, 2) for item in best[row, ::2] if item >= 0] + [
                (rows - 1, items - 1)
            ]
            few = [sorted(random.permutation(items)[: 1 + 20 * row].tolist()) for row in range(rows)]
            for pairs in ([], sorted(set(excluded))):
                for candidates in (None, few):
                    right = brute_force(masked(scores, pairs, candidates), k)
                    for got in head.rank_in_each_way([[int(user)] for user in users], k, pairs, candidates):
                        if np.array_equal(got.ids, right.ids) and np.array_equal(got.scores, right.scores):
                            continue
                        raise ExportError(
                            f"The head ranks equal scores wrong for {items} x {size} ({rows} rows, k = {k}, "
                            f"{len(pairs)} exclusions, {'candidates' if candidates else 'whole catalogue'}). "
                            "Nothing was written; this is a defect of the export."
                        )
