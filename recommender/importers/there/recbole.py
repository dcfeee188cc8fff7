"""RecBole: its `.pth` checkpoints, with the dataset that their configuration names."""

from __future__ import annotations

import argparse
import inspect
import logging
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from recommender.importers.there.common import (
    HISTORIES,
    PROGRAM,
    SHOWN,
    Asked,
    Trained,
    exported,
    keys_of,
    main,
    refuse,
    refuse_large,
)

KNOWN = ("SASRec", "GRU4Rec", "BERT4Rec")
"""Networks of which the numbers are handed over; others that encode a history are handed over as programs."""
READ = {"item_seq": 0, "seq_item": 0, "item_seq_len": 1, "seq_item_len": 1}
"""What RecBole's networks call ids and lengths of histories; they are the first and the second input of a program."""
CLOSE = 1e-4
"""The largest difference of scores, in parts of the largest score."""
FACTS = ("n_layers", "n_heads", "num_layers", "hidden_size", "MAX_ITEM_LIST_LENGTH", "hidden_act", "layer_norm_eps")


def load(arguments: argparse.Namespace) -> Trained:
    """The model and its maps, as RecBole's own `load_data_and_model` builds them."""
    import recbole
    import torch
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import ModelType, get_model, init_seed

    checkpoint = _checkpoint(torch, arguments.source)
    config, state = checkpoint["config"], checkpoint["state_dict"]
    name = config["model"]
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
    if name == "EASE":
        refuse_large(len(other["item_similarity"]) - 1)
    elif config["MODEL_TYPE"] is not ModelType.SEQUENTIAL:
        refuse(f"{arguments.source} is a {name}; taken are EASE and networks that encode a history, such as SASRec")
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    training, _, _ = data_preparation(config, dataset)
    field = config["ITEM_ID_FIELD"]
    rows = _items(name, state, other)
    if rows not in (None, dataset.num(field)):
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
            rank=lambda asked: _ranked_by_ease(torch, config, model, [each.history for each in asked]),
        )
    common["longest"] = int(config["MAX_ITEM_LIST_LENGTH"])
    common["rank"] = lambda asked: _ranked(torch, config, model, asked)
    if name not in KNOWN:
        longest = max(common["drawn"], key=len)[-common["longest"] :]
        program, arrays = _program(torch, config, model, longest)
        sizes = {"width": common["longest"], "padding_side": "right", "first_item": 1}
        return Trained(**common, form=PROGRAM, arrays=arrays, sizes=sizes, program=program)
    return Trained(
        **common,
        form=f"recbole.{name.lower()}",
        arrays={key: value.cpu().numpy() for key, value in state.items()},
        sizes={fact: config[fact] for fact in FACTS if fact in config},
    )


def _checkpoint(torch: Any, source: str) -> Any:
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=False)
    except Exception as error:
        refuse(f"{source} cannot be read as RecBole's checkpoint: {type(error).__name__}: {error}")
    if not isinstance(checkpoint, dict) or not {"config", "state_dict"} <= set(checkpoint):
        refuse(f"{source} is no checkpoint of RecBole: it has no config or no state_dict")
    return checkpoint


def _items(name: str, state: Any, other: Any) -> int | None:
    """The rows of the checkpoint's table of items, the padding's with them; None if no table has the usual name."""
    if name == "EASE":
        return len(other["item_similarity"])
    table = state.get("item_embedding.weight")
    return None if table is None else len(table) - (name == "BERT4Rec")


def _program(torch: Any, config: Any, model: Any, history: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """The encoder as a program, and the vectors [items, d] and bias [items] that its product is scored with.

    The vectors are the scores that `full_sort_predict` makes of unit vectors, so whatever the network does to its table
    is done to them.
    """
    name, taken = type(model).__name__, list(inspect.signature(model.forward).parameters)
    unknown = [each for each in taken if each not in READ]
    if unknown:
        refuse(f"{name} reads {', '.join(unknown)} besides a history, which this import does not carry over")

    class Encoder(torch.nn.Module):  # type: ignore[misc]  # torch is the library's
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, lengths: Any) -> Any:
            return self.model.forward(*(lengths if READ[each] else ids for each in taken))

    encoder = Encoder().eval()
    asked = _interaction(torch, config, history)
    ids, lengths = asked[model.ITEM_SEQ], asked[model.ITEM_SEQ_LEN]
    with torch.no_grad():
        user, scores = encoder(ids, lengths), model.full_sort_predict(asked).view(-1)
        if user.dim() != 2:  # noqa: PLR2004 (rows and columns)
            refuse(f"{name} encodes a history as {list(user.shape)}; expected is a vector [1, d]")
        if user.shape[1] >= len(scores):
            refuse_large(len(scores))  # it yields scores, so each item has a vector as long as the catalogue
        forward = model.forward
        try:
            model.forward = lambda *_: torch.zeros_like(user)
            bias = model.full_sort_predict(asked).view(-1)
            model.forward = lambda *_: torch.eye(user.shape[1])
            vectors = model.full_sort_predict(asked).view(user.shape[1], -1).T - bias[:, None]
        finally:
            model.forward = forward
    if not torch.allclose(vectors @ user[0] + bias, scores, rtol=0, atol=CLOSE * float(scores.abs().max())):
        refuse(f"{name} scores items otherwise than by a product of the history's vector with a vector of each")
    program = exported(encoder, ids.expand(3, -1).contiguous(), lengths.expand(3).contiguous())
    arrays = {"weights": vectors[1:].numpy()}
    if bias.any():
        arrays["bias"] = bias[1:].numpy()
    return program, arrays


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


def _ranked(torch: Any, config: Any, model: Any, asked: Sequence[Asked]) -> list[list[int]]:
    """What `full_sort_predict` scores best, the padding left out."""
    ranked = []
    for each in asked:
        with torch.no_grad():
            scores = model.full_sort_predict(_interaction(torch, config, each.history)).view(-1)
        scores[0] = -torch.inf
        ranked.append((scores.topk(SHOWN).indices - 1).tolist())
    return ranked


def _interaction(torch: Any, config: Any, history: Sequence[int]) -> Any:
    """A history as RecBole's networks read it, padded on the right."""
    from recbole.data.interaction import Interaction

    row = torch.zeros(1, int(config["MAX_ITEM_LIST_LENGTH"]), dtype=torch.int64)
    row[0, : len(history)] = torch.tensor(history) + 1
    return Interaction(
        {
            config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]: row,
            config["ITEM_LIST_LENGTH_FIELD"]: torch.tensor([len(history)]),
        }
    )


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
