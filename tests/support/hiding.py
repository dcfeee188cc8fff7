"""Lists of hidden items that a test changes, and brute force that knows what is hidden."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recommender.domain import Ranking
from recommender.recommend_api.v1 import recommend_api_pb2 as api


def write_list(path: Path, keys: Iterable[str]) -> None:
    """Write a list of hidden items in one step."""
    draft = path.with_name(f".{path.name}")
    draft.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    draft.replace(path)


def best_visible(
    request: api.RecommendRequest,
    embeddings: npt.NDArray[np.float32],
    hidden: Collection[int],
    fallback: Iterable[int],
    limit: int = 10,
) -> tuple[Ranking, int]:
    """What a request of ids must get from a reference model, and from which source, by sorting everything."""
    items = len(embeddings)
    history = [item for item in request.item_ids if item < items]
    allowed = set(range(items)) - set(hidden) - set(request.excluded_item_ids)
    if request.exclude_history:
        allowed -= set(history)
    if request.candidate_item_ids:
        allowed &= set(request.candidate_item_ids)
    limit = request.limit or limit
    if not history:
        return Ranking([item for item in fallback if item in allowed][:limit], []), api.SOURCE_FALLBACK
    scores = embeddings.astype(np.float64) @ embeddings[history].astype(np.float64).mean(axis=0)
    order = [item for item in np.argsort(-scores, kind="stable").tolist() if item in allowed][:limit]
    return Ranking(order, [float(scores[item]) for item in order]), api.SOURCE_MODEL
