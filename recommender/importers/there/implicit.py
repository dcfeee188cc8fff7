"""implicit: models that `model.save` wrote."""

from __future__ import annotations

import argparse
import zipfile
from typing import Any, Sequence

import numpy as np

from recommender.importers.there.common import SHOWN, Asked, Trained, keys_of, lines_of, main, refuse

SIMILARITY = {"K", "shape", "data", "indptr", "indices"}
FACTORS = {
    "AlternatingLeastSquares": {"user_factors", "item_factors", "alpha", "regularization", "use_cg"},
    "BayesianPersonalizedRanking": {"user_factors", "item_factors", "learning_rate", "verify_negative_samples"},
}
"""Fields by which a file is known, which does not name its class."""


def load(arguments: argparse.Namespace) -> Trained:
    """The model in a `.npz`, whose fields identify its class."""
    fields = _fields(arguments.source)
    name = next((name for name, needed in FACTORS.items() if needed <= fields.keys()), None)
    if name is None and not fields.keys() >= SIMILARITY:
        refuse(
            f"{arguments.source} is no fitted ALS, BPR or item-to-item model of implicit, saved by model.save(): it "
            f"has {', '.join(sorted(fields)[:10]) or 'nothing'}. Factors of others are imported by `vectors`"
        )
    import implicit

    if name is None:
        return _similar(fields, arguments, implicit.__version__)
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    als = name == "AlternatingLeastSquares"
    model = (AlternatingLeastSquares if als else BayesianPersonalizedRanking).load(arguments.source)
    scalars = {name: value.item() for name, value in fields.items() if not value.ndim}
    users, items = model.user_factors, model.item_factors

    def rank(asked: Sequence[Asked]) -> list[Any]:
        ranked = []
        for each in asked:
            ids, scores = model.recommend(
                each.user or 0,
                _row(each.history, len(items)),
                N=SHOWN,
                filter_already_liked_items=True,
                recalculate_user=each.user is None,
            )
            # If fewer items are left, the library adds those of the history, with the lowest number as their score.
            ranked.append(ids[scores > np.finfo(np.float32).min])
        return ranked

    return Trained(
        library="implicit",
        version=implicit.__version__,
        network=name,
        form="implicit.als" if als else "implicit.bpr",
        arrays={"user_factors": users, "item_factors": items},
        sizes={name: float(scalars[name]) for name in ("alpha", "regularization") if name in scalars},
        parameters=scalars,
        items=len(items),
        item_keys=_keys(arguments.item_keys, len(items), "items"),
        users=len(users),
        folds=als,
        user_keys=_keys(arguments.user_keys, len(users), "users"),
        rank=rank,
        without_seen=True,
    )


def _fields(source: str) -> dict[str, Any]:
    """The arrays of the file."""
    try:
        with np.load(source, allow_pickle=False) as saved:
            return {name: saved[name] for name in saved.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        refuse(f"{source} is no .npz that implicit's model.save() wrote: {type(error).__name__}: {error}")


def _similar(fields: dict[str, Any], arguments: argparse.Namespace, version: str) -> Trained:
    from implicit.nearest_neighbours import ItemItemRecommender

    model = ItemItemRecommender.load(arguments.source)
    items = int(fields["shape"][0])

    def rank(asked: Sequence[Asked]) -> list[Any]:
        ranked = []
        for each in asked:
            ids, scores = model.recommend(0, _row(each.history, items), N=SHOWN, filter_already_liked_items=True)
            # Where fewer items are similar, the library fills up with items of score 0, in any order.
            ranked.append(ids[scores > 0])
        return ranked

    return Trained(
        library="implicit",
        version=version,
        network="ItemItemRecommender",
        form="similarity.sparse",
        arrays={name: fields[name] for name in ("indptr", "indices", "data")},
        sizes={},
        parameters={"K": int(fields["K"])},
        items=items,
        item_keys=_keys(arguments.item_keys, items, "items"),
        rank=rank,
        without_seen=True,
    )


def _row(history: Sequence[int], items: int) -> Any:
    from scipy.sparse import csr_matrix

    ids = sorted(set(history))
    return csr_matrix((np.ones(len(ids), np.float32), ids, [0, len(ids)]), shape=(1, items))


def _keys(path: str | None, count: int, what: str) -> list[str] | None:
    keys = lines_of(path)
    if keys is not None and len(keys) != count:
        refuse(f"{path} has {len(keys)} keys and the model {count} {what}; line i is the key of number i")
    return None if keys is None else keys_of(keys)


if __name__ == "__main__":
    main(load)
