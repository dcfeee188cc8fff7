"""RecTools: models that `model.save` wrote, and checkpoints of Lightning."""

from __future__ import annotations

import argparse
import warnings
from typing import Any, Sequence

from recommender.importers.there.common import SHOWN, Trained, keys_of, main, refuse

SPECIAL = {"SASRecModel": 1, "BERT4RecModel": 2}
"""Tokens before the first item: padding, and BERT4Rec's mask."""


def load(arguments: argparse.Namespace) -> Trained:
    """The model; a checkpoint is read by the class that fits it."""
    import rectools
    from rectools.models import EASEModel

    warnings.simplefilter("ignore")
    model = _model(arguments.source)
    name = type(model).__name__
    if isinstance(model, EASEModel):
        refuse("EASE keeps no ids of items: write its `weight` by numpy.save and import that by `vectors --similarity`")
    if name not in SPECIAL:
        refuse(f"{arguments.source} holds {name}; known are {', '.join(SPECIAL)}")
    if not model.is_fitted:
        refuse(f"{arguments.source} holds a {name} that was not fitted")
    preparing, network = model.data_preparator, model.torch_model
    config = model.get_params(simple_types=True)
    skipped = len(preparing.item_extra_tokens)
    keys = keys_of(preparing.item_id_map.external_ids[skipped:])
    _refuse_unknown(name, network)
    state = network.state_dict()
    arrays = {
        key.removeprefix("transformer_layers."): value.numpy()
        for key, value in state.items()
        if key.startswith("transformer_layers.")
    }
    arrays["item_embeddings"] = network.item_model.get_all_embeddings().detach().numpy()
    arrays["positions"] = state["pos_encoding_layer.pos_emb.weight"].numpy()
    longest = preparing.session_max_len - (name == "BERT4RecModel")
    return Trained(
        library="rectools",
        version=rectools.__version__,
        network=name,
        form={"SASRecModel": "rectools.sasrec", "BERT4RecModel": "rectools.bert4rec"}[name],
        arrays=arrays,
        sizes={
            "session_max_len": preparing.session_max_len,
            "n_heads": model.n_heads,
            "n_blocks": model.n_blocks,
            "use_scale_factor": bool(network.pos_encoding_layer.use_scale_factor),
            "distance": network.similarity_module.distance.name.lower(),
        },
        parameters={key: value for key, value in config.items() if value is not None},
        items=len(keys),
        item_keys=keys,
        longest=longest,
        rank=lambda histories, _: _ranked(model, keys, histories),
    )


def _model(source: str) -> Any:
    from rectools.models import BERT4RecModel, SASRecModel, load_model

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
    for kind in (SASRecModel, BERT4RecModel):
        if kind.__name__ in named:
            return kind.load_from_checkpoint(source, map_location="cpu")
    return refuse(f"{source} is a checkpoint of {named or 'no known model'}; known are {', '.join(SPECIAL)}")


def _refuse_unknown(name: str, network: Any) -> None:
    """The networks here are those of RecTools' defaults; parts of one's own are none."""
    expected = {
        "SASRecModel": ("SASRecTransformerLayers", True, False),
        "BERT4RecModel": ("PreLNTransformerLayers", False, True),
    }[name]
    found = (type(network.transformer_layers).__name__, network.use_causal_attn, network.use_key_padding_mask)
    parts = (
        type(network).__name__,
        type(network.pos_encoding_layer).__name__,
        type(network.similarity_module).__name__,
    )
    if found != expected or parts != (
        "TransformerTorchBackbone",
        "LearnableInversePositionalEncoding",
        "DistanceSimilarityModule",
    ):
        refuse(
            f"the {name} has {', '.join((found[0], *parts))}, causal {found[1]}, padding mask {found[2]}; taken is "
            f"{expected[0]}, causal {expected[1]}, padding mask {expected[2]} with RecTools' default other parts"
        )
    if network.pos_encoding_layer.pos_emb is None:
        refuse(f"the {name} was trained without positions (use_pos_emb=False), which is not taken")


def _ranked(model: Any, keys: list[str], histories: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the library recommends when each history is a user of its own."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    skipped = len(model.data_preparator.item_extra_tokens)
    external = model.data_preparator.item_id_map.external_ids[skipped:]
    rows = [(user, external[item]) for user, history in enumerate(histories) for item in history]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(range(len(frame)), unit="s")
    # An item that repeats stands in a history as often as it occurs.
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
