"""Models of whole numbers: every score is exact, so a ranking has one right answer, ties and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from recommender.export.artifact import write_model
from recommender.export.graph import build_graph
from recommender.export.head.codes import CODES, Codes
from recommender.export.nodes import Nodes
from recommender.export.table import TABLE, Layout, pack

SIZE, MAX_K = 8, 300


def embeddings(items: int) -> npt.NDArray[np.float32]:
    """Whole numbers, so that a ranking has one right answer: ties and all."""
    return np.random.default_rng(items).integers(-2, 3, (items, SIZE)).astype(np.float32)


def exported(path: Path, items: int, *, coarse: bool) -> Path:
    """Write a model whose vector of a history is the embedding of its last item."""
    layout = Layout(items, SIZE)
    table = pack(embeddings(items), None, layout)
    codes = Codes.of(table, layout) if coarse else None

    def last_item(g: Nodes) -> str:
        last = g.op("Sub", "history_length", g.int64(1))
        item = g.op("GatherElements", "user_history", g.op("Unsqueeze", last, g.int64(1)), axis=1)
        return g.op("Gather", TABLE, g.op("Squeeze", item, g.int64(1)), axis=0)

    told = {"items": str(items), "default_k": "10", "max_k": str(min(items, MAX_K))}
    graph = build_graph(last_item, layout, largest=2.0, codes=codes, metadata=told)
    write_model(graph, table, path, 1 << 30, {} if codes is None else {CODES: codes.codes})
    return path
