"""implicit: models that `model.save` wrote."""

from __future__ import annotations

import argparse
from typing import Any, Sequence

import numpy as np

from recommender.importers.there.common import SHOWN, Trained, keys_of, lines_of, main, refuse


def load(arguments: argparse.Namespace) -> Trained:
    """The model in a `.npz`; its fields tell its class, which the file does not name."""
    import implicit
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.cpu.bpr import BayesianPersonalizedRanking
    from implicit.nearest_neighbours import ItemItemRecommender

    try:
        with np.load(arguments.source, allow_pickle=False) as saved:
            fields = {name: saved[name] for name in saved.files}
    except (OSError, ValueError) as error:
        refuse(f"{arguments.source} is no file that implicit's model.save() wrote: {error}")
    if "indptr" in fields:
        return _similar(ItemItemRecommender.load(arguments.source), fields, arguments, implicit.__version__)
    for name in ("user_factors", "item_factors"):
        if name not in fields:
            refuse(f"{arguments.source} has no {name}: it is no fitted ALS, BPR or item-to-item model")
    als = "alpha" in fields or "use_cg" in fields
    model = (AlternatingLeastSquares if als else BayesianPersonalizedRanking).load(arguments.source)
    if not als and "learning_rate" not in fields:
        refuse(f"{arguments.source} is neither ALS nor BPR; import its factors with `vectors`")
    scalars = {name: value.item() for name, value in fields.items() if not value.ndim}
    users, items = model.user_factors, model.item_factors

    def rank(histories: Sequence[Sequence[int]], asked: Sequence[int | None]) -> list[Any]:
        ranked = []
        for history, user in zip(histories, asked):
            if user is not None:
                ids, _ = model.recommend(user, None, N=SHOWN, filter_already_liked_items=False)
            else:
                ids, _ = model.recommend(
                    0, _row(history, len(items)), N=SHOWN, filter_already_liked_items=False, recalculate_user=True
                )
            ranked.append(ids)
        return ranked

    return Trained(
        library="implicit",
        version=implicit.__version__,
        network=type(model).__name__,
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
    )


def _similar(model: Any, fields: dict[str, Any], arguments: argparse.Namespace, version: str) -> Trained:
    items = int(fields["shape"][0])

    def rank(histories: Sequence[Sequence[int]], _: Sequence[int | None]) -> list[Any]:
        ranked = []
        for history in histories:
            ids, scores = model.recommend(0, _row(history, items), N=SHOWN, filter_already_liked_items=False)
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
