"""RecBole: its `.pth` checkpoints, with the dataset that their configuration names."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from recommender.importers.there.common import HISTORIES, SHOWN, Trained, keys_of, main, refuse, refuse_large

TAKEN = ("SASRec", "GRU4Rec", "BERT4Rec", "EASE")
FACTS = ("n_layers", "n_heads", "num_layers", "hidden_size", "MAX_ITEM_LIST_LENGTH", "hidden_act", "layer_norm_eps")


def load(arguments: argparse.Namespace) -> Trained:
    """The model and its maps, as RecBole's own `load_data_and_model` builds them."""
    import recbole
    import torch
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    checkpoint = _checkpoint(torch, arguments.source)
    config, state = checkpoint["config"], checkpoint["state_dict"]
    name = config["model"]
    if name not in TAKEN:
        refuse(f"{arguments.source} is a {name}; taken are {', '.join(TAKEN)}")
    logging.disable(logging.CRITICAL)
    config["device"] = torch.device("cpu")
    if not Path(config["data_path"]).is_dir():
        refuse(
            f"the checkpoint's dataset is not at {config['data_path']}, and its maps are needed: put the data back, "
            "or run this script where the model was trained (--script)"
        )
    other = checkpoint.get("other_parameter") or {}
    if name == "EASE" and "item_similarity" not in other:
        refuse(f"{arguments.source} has no item_similarity: EASE was saved before it was trained")
    rows = len(other["item_similarity"]) if name == "EASE" else len(state["item_embedding.weight"])
    if name == "EASE":
        refuse_large(rows - 1)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    training, _, _ = data_preparation(config, dataset)
    field = config["ITEM_ID_FIELD"]
    rows -= name == "BERT4Rec"
    if rows != dataset.num(field):
        refuse(
            f"the checkpoint has {rows - 1} items and the dataset {dataset.num(field) - 1}: it is not the data that "
            "the model was trained on, or it is filtered otherwise"
        )
    model = get_model(name)(config, training.dataset)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        refuse(f"the checkpoint does not fit RecBole's {name}: {str(error).splitlines()[-1].strip()}")
    model.load_other_parameter(other)
    model.eval()
    keys = keys_of(dataset.field2id_token[field][1:])
    counts = dataset.item_counter
    popular = sorted((item for item in counts if item), key=lambda item: (-counts[item], item))
    parameters = {key: value for key, value in config.final_config_dict.items() if key in _told(config)}
    data = Path(config["data_path"], f"{config['dataset']}.inter")
    common: dict[str, Any] = {
        "library": "recbole",
        "version": recbole.__version__,
        "network": name,
        "parameters": parameters,
        "items": len(keys),
        "item_keys": keys,
        "drawn": _histories(dataset, config),
        "popular": [item - 1 for item in popular[:100]],
        "data": data if data.is_file() else None,
    }
    if name == "EASE":
        weights = np.ascontiguousarray(np.asarray(model.item_similarity, np.float32)[1:, 1:])
        return Trained(
            **common,
            form="similarity.dense",
            arrays={"weights": weights},
            sizes={},
            rank=lambda histories, _: _ranked_by_ease(torch, config, model, histories),
        )
    return Trained(
        **common,
        form=f"recbole.{name.lower()}",
        arrays={key: value.cpu().numpy() for key, value in state.items()},
        sizes={fact: config[fact] for fact in FACTS if fact in config},
        longest=int(config["MAX_ITEM_LIST_LENGTH"]),
        rank=lambda histories, _: _ranked(torch, config, model, histories),
    )


def _checkpoint(torch: Any, source: str) -> Any:
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=False)
    except Exception as error:
        refuse(f"{source} cannot be read as RecBole's checkpoint: {type(error).__name__}: {error}")
    if not isinstance(checkpoint, dict) or not {"config", "state_dict"} <= set(checkpoint):
        refuse(f"{source} is no checkpoint of RecBole: it has no config or no state_dict")
    return checkpoint


def _told(config: Any) -> set[str]:
    """The model's and the training's own parameters."""
    return {
        *config.parameters["Training"],
        *FACTS,
        "model",
        "dataset",
        "loss_type",
        "embedding_size",
        "inner_size",
        "reg_weight",
    }


def _histories(dataset: Any, config: Any) -> list[list[int]]:
    """The first users' items in the order of time."""
    frame = dataset.inter_feat
    users, items = frame[config["USER_ID_FIELD"]].tolist(), frame[config["ITEM_ID_FIELD"]].tolist()
    times = frame[config["TIME_FIELD"]].tolist() if config["TIME_FIELD"] in frame else [0] * len(items)
    histories: dict[int, list[int]] = {}
    for _, user, item in sorted(zip(times, users, items), key=lambda each: each[0]):
        histories.setdefault(user, []).append(int(item) - 1)
    return [each[:-1] for each in list(histories.values())[:HISTORIES]]


def _ranked(torch: Any, config: Any, model: Any, histories: Sequence[Sequence[int]]) -> list[list[int]]:
    """What `full_sort_predict` scores best, the padding left out."""
    from recbole.data.interaction import Interaction

    ranked = []
    width = int(config["MAX_ITEM_LIST_LENGTH"])
    for history in histories:
        row = torch.zeros(1, width, dtype=torch.int64)
        row[0, : len(history)] = torch.tensor(history) + 1
        asked = Interaction(
            {
                config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]: row,
                config["ITEM_LIST_LENGTH_FIELD"]: torch.tensor([len(history)]),
            }
        )
        with torch.no_grad():
            scores = model.full_sort_predict(asked).view(-1)
        scores[0] = -torch.inf
        ranked.append((scores.topk(SHOWN).indices - 1).tolist())
    return ranked


def _ranked_by_ease(torch: Any, config: Any, model: Any, histories: Sequence[Sequence[int]]) -> list[list[int]]:
    """The best items of `full_sort_predict` for users who have taken each item of these histories once."""
    from recbole.data.interaction import Interaction
    from scipy.sparse import csr_matrix

    cells = [(user, item + 1) for user, history in enumerate(histories) for item in sorted(set(history))]
    users, items = zip(*cells)
    shape = (len(histories), len(model.item_similarity))
    model.interaction_matrix = csr_matrix((np.ones(len(cells), np.float32), (users, items)), shape=shape)
    scores = model.full_sort_predict(Interaction({config["USER_ID_FIELD"]: torch.arange(len(histories))}))
    scores = scores.view(len(histories), -1)[:, 1:]
    found: list[list[int]] = scores.topk(SHOWN).indices.tolist()
    return found


if __name__ == "__main__":
    main(load)
