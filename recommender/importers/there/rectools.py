"""RecTools: models that `model.save` wrote, and checkpoints of Lightning."""

from __future__ import annotations

import argparse
import warnings
from typing import Any, Sequence

import numpy as np

from recommender.importers.there.common import SHOWN, Trained, keys_of, lines_of, main, refuse, refuse_large

TAKEN = {
    "SASRecModel": ("SASRecTransformerLayers", "PreLNTransformerLayers", "LiGRLayers"),
    "BERT4RecModel": ("PreLNTransformerLayers", "LiGRLayers"),
    "HSTUModel": ("STULayers",),
}
"""The layers that each model may have."""
FORMS = {"SASRecModel": "rectools.sasrec", "BERT4RecModel": "rectools.bert4rec", "HSTUModel": "rectools.hstu"}


def load(arguments: argparse.Namespace) -> Trained:
    """The model; a checkpoint is read by the class that fits it."""
    import rectools

    warnings.simplefilter("ignore")
    model = _model(arguments.source)
    name = type(model).__name__
    if name not in (*TAKEN, "EASEModel"):
        refuse(f"{arguments.source} holds {name}; known are {', '.join((*TAKEN, 'EASEModel'))}")
    if not model.is_fitted:
        refuse(f"{arguments.source} holds a {name} that was not fitted")
    if name == "EASEModel":
        return _ease(model, arguments, rectools.__version__)
    preparing, network = model.data_preparator, model.torch_model
    keys = keys_of(preparing.item_id_map.external_ids[len(preparing.item_extra_tokens) :])
    _refuse_unknown(name, model, network)
    state = network.state_dict()
    arrays = {
        key.removeprefix("transformer_layers."): value.numpy()
        for key, value in state.items()
        if key.startswith("transformer_layers.")
    }
    arrays["item_embeddings"] = network.item_model.get_all_embeddings().detach().numpy()
    positions = network.pos_encoding_layer.pos_emb
    size = (preparing.session_max_len, arrays["item_embeddings"].shape[1])
    arrays["positions"] = np.zeros(size, np.float32) if positions is None else positions.weight.detach().numpy()
    layers = network.transformer_layers
    return Trained(
        library="rectools",
        version=rectools.__version__,
        network=name,
        form=FORMS[name],
        arrays=arrays,
        sizes={
            "session_max_len": preparing.session_max_len,
            "n_heads": model.n_heads,
            "n_blocks": model.n_blocks,
            "use_scale_factor": bool(network.pos_encoding_layer.use_scale_factor),
            "distance": network.similarity_module.distance.name.lower(),
            "layers": type(layers).__name__,
            "use_key_padding_mask": bool(network.use_key_padding_mask),
            "ff_activation": getattr(layers, "ff_activation", "gelu"),
            "epsilon": getattr(layers, "epsilon", None),
            "relative_pos_attention": getattr(model, "relative_pos_attention", None),
        },
        parameters={key: value for key, value in model.get_params(simple_types=True).items() if value is not None},
        items=len(keys),
        item_keys=keys,
        longest=preparing.session_max_len - (name == "BERT4RecModel"),
        rank=lambda histories, _: _ranked(model, keys, histories),
    )


def _ease(model: Any, arguments: argparse.Namespace, version: str) -> Trained:
    """EASE, which keeps no ids of items: they are those of --item-keys, in the order of the training's dataset."""
    items = len(model.weight)
    refuse_large(items)
    keys = lines_of(arguments.item_keys)
    if keys is not None and len(keys) != items:
        refuse(f"{arguments.item_keys} has {len(keys)} keys and the model {items} items; line i is the key of number i")
    return Trained(
        library="rectools",
        version=version,
        network="EASEModel",
        form="similarity.dense",
        arrays={"weights": np.ascontiguousarray(model.weight.T)},
        sizes={},
        parameters={"regularization": float(model.regularization)},
        items=items,
        item_keys=None if keys is None else keys_of(keys),
        rank=lambda histories, _: _ranked_by_ease(model, histories, items),
    )


def _ranked_by_ease(model: Any, histories: Sequence[Sequence[int]], items: int) -> list[list[int]]:
    """The library's recommendations if each history is a user who has taken each of its items once."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset, IdMap, Interactions

    rows = [(user, item) for user, history in enumerate(histories) for item in sorted(set(history))]
    # Its matrix has columns up to the last item that a user has taken, so one more user takes the very last.
    rows.append((len(histories), items - 1))
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(0, unit="s")
    users = np.arange(len(histories) + 1)
    dataset = Dataset(IdMap(users), IdMap(np.arange(items)), Interactions(frame))
    found = model.recommend(users=users[:-1], dataset=dataset, k=min(SHOWN, items), filter_viewed=False)
    ranked: list[list[int]] = [[] for _ in histories]
    for user, item in found.sort_values([Columns.User, Columns.Rank])[[Columns.User, Columns.Item]].itertuples(
        index=False
    ):
        ranked[user].append(int(item))
    return ranked


def _model(source: str) -> Any:
    from rectools.models import BERT4RecModel, HSTUModel, SASRecModel, load_model

    if not source.endswith(".ckpt"):
        try:
            return load_model(source)
        except Exception as error:
            refuse(f"{source} is no model that RecTools' model.save() wrote: {type(error).__name__}: {error}")
    import torch

    checkpoint = torch.load(source, map_location="cpu", weights_only=False)
    parameters = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if "model_config" not in parameters:
        refuse(f"{source} is no checkpoint of a RecTools transformer: it has no model_config")
    named = str(parameters["model_config"].get("cls", ""))
    for kind in (SASRecModel, BERT4RecModel, HSTUModel):
        if kind.__name__ in named:
            return kind.load_from_checkpoint(source, map_location="cpu")
    return refuse(f"{source} is a checkpoint of {named or 'no known model'}; known are {', '.join(TAKEN)}")


def _refuse_unknown(name: str, model: Any, network: Any) -> None:
    """Refuse networks with custom parts; RecTools' own are supported."""
    layers = type(network.transformer_layers).__name__
    parts = (
        type(network).__name__,
        type(network.pos_encoding_layer).__name__,
        type(network.similarity_module).__name__,
    )
    taken = ("TransformerTorchBackbone", "LearnableInversePositionalEncoding", "DistanceSimilarityModule")
    if layers not in TAKEN[name] or parts != taken:
        refuse(
            f"the {name} has {', '.join((layers, *parts))}; taken are {' or '.join(TAKEN[name])} with "
            f"{', '.join(taken)}"
        )
    bidirectional = name == "BERT4RecModel"
    if network.use_causal_attn == bidirectional or (bidirectional and not network.use_key_padding_mask):
        refuse(
            f"the {name} was trained with use_causal_attn={network.use_causal_attn} and "
            f"use_key_padding_mask={network.use_key_padding_mask}; taken are RecTools' defaults for it"
        )
    if getattr(model, "relative_time_attention", False):
        refuse(
            "the HSTUModel looks at the times of its items and of the request, which this import does not carry over: "
            "train it with relative_time_attention=False"
        )


def _ranked(model: Any, keys: list[str], histories: Sequence[Sequence[int]]) -> list[list[int]]:
    """The library's recommendations if each history is a separate user."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    skipped = len(model.data_preparator.item_extra_tokens)
    external = model.data_preparator.item_id_map.external_ids[skipped:]
    rows = [(user, external[item]) for user, history in enumerate(histories) for item in history]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(range(len(frame)), unit="s")
    # A repeated item is in a history as often as it occurs.
    found = model.recommend(
        users=list(range(len(histories))), dataset=Dataset.construct(frame), k=SHOWN, filter_viewed=False
    )
    numbers = {key: number for number, key in enumerate(keys)}
    ranked: list[list[int]] = [[] for _ in histories]
    for user, item in found.sort_values([Columns.User, Columns.Rank])[[Columns.User, Columns.Item]].itertuples(
        index=False
    ):
        ranked[user].append(numbers[str(item)])
    return ranked


if __name__ == "__main__":
    main(load)
