"""RecTools: models that `model.save` wrote, and checkpoints of Lightning."""

from __future__ import annotations

import argparse
import warnings
from typing import Any, Sequence

import numpy as np

from recommender.importers.there.common import (
    PROGRAM,
    SHOWN,
    Asked,
    Trained,
    exported,
    keys_of,
    lines_of,
    main,
    refuse,
    refuse_large,
)

TAKEN = {
    "SASRecModel": ("SASRecTransformerLayers", "PreLNTransformerLayers", "LiGRLayers"),
    "BERT4RecModel": ("PreLNTransformerLayers", "LiGRLayers"),
    "HSTUModel": ("STULayers",),
}
"""The layers whose numbers are handed over, by model; a model with others is handed over as a program."""
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
    common: dict[str, Any] = {
        "library": "rectools",
        "version": rectools.__version__,
        "network": name,
        "parameters": {key: value for key, value in model.get_params(simple_types=True).items() if value is not None},
        "items": len(keys),
        "item_keys": keys,
        "longest": preparing.session_max_len - (name == "BERT4RecModel"),
        "rank": lambda asked: _ranked(model, keys, asked),
        "timed": model.require_recommend_context,
    }
    if not _known(name, network):
        if common["timed"]:
            refuse(f"the {name} has custom parts and reads times, which a program of this import does not")
        return Trained(**common, form=PROGRAM, **_program(name, preparing, network))
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
        **common,
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
            "relative_time_attention": getattr(model, "relative_time_attention", None),
        },
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
        rank=lambda asked: _ranked_by_ease(model, [each.history for each in asked], items),
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


def _known(name: str, network: Any) -> bool:
    """Whether the network has RecTools' own parts, with the masks that are its defaults for this model."""
    parts = (type(network).__name__, type(network.pos_encoding_layer).__name__)
    similarity = type(network.similarity_module).__name__
    if similarity != "DistanceSimilarityModule":
        refuse(f"the {name} scores items by {similarity}; taken is DistanceSimilarityModule")
    bidirectional = name == "BERT4RecModel"
    return (
        type(network.transformer_layers).__name__ in TAKEN[name]
        and parts == ("TransformerTorchBackbone", "LearnableInversePositionalEncoding")
        and network.use_causal_attn != bidirectional
        and (network.use_key_padding_mask or not bidirectional)
    )


def _program(name: str, preparing: Any, network: Any) -> dict[str, Any]:
    """The encoder as a program, the vectors [items, d] that its product is scored with, and how it reads a history."""
    import torch

    skipped = len(preparing.item_extra_tokens)
    normed = network.similarity_module._get_embeddings_norm  # noqa: SLF001 (the library has no other way)
    by_cosine = network.similarity_module.distance.name == "COSINE"

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: Any) -> Any:
            items = self.network.item_model.get_all_embeddings()
            user = self.network.encode_sessions({"x": ids}, items)[:, -1, :]
            return normed(user) if by_cosine else user

    network.eval()
    width = preparing.session_max_len
    ids = torch.arange(3 * width).view(3, width) % (len(preparing.item_id_map.external_ids) - skipped) + skipped
    with torch.no_grad():
        items = network.item_model.get_all_embeddings()[skipped:]
        vectors = (normed(items) if by_cosine else items).numpy()
    sizes = {"width": width, "padding_side": "left", "first_item": skipped}
    if name == "BERT4RecModel":
        sizes["mask_id"] = int(preparing.extra_token_ids["MASK"])
    return {"program": exported(Encoder(), ids), "arrays": {"weights": vectors}, "sizes": sizes}


def _ranked(model: Any, keys: list[str], asked: Sequence[Asked]) -> list[list[int]]:
    """The library's recommendations if each history is a separate user."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    skipped = len(model.data_preparator.item_extra_tokens)
    external = model.data_preparator.item_id_map.external_ids[skipped:]
    rows = [
        (user, external[item], time) for user, each in enumerate(asked) for item, time in zip(each.history, each.times)
    ]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Datetime])
    frame[Columns.Weight] = 1.0
    users = list(range(len(asked)))
    more = {}
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s").astype("datetime64[ns]")
    if model.require_recommend_context:
        now = pd.to_datetime([each.times[-1] for each in asked], unit="s").astype("datetime64[ns]")
        more["context"] = pd.DataFrame({Columns.User: users, Columns.Datetime: now, Columns.Weight: 1.0})
    # A repeated item is in a history as often as it occurs.
    found = model.recommend(users=users, dataset=Dataset.construct(frame), k=SHOWN, filter_viewed=False, **more)
    numbers = {key: number for number, key in enumerate(keys)}
    ranked: list[list[int]] = [[] for _ in asked]
    for user, item in found.sort_values([Columns.User, Columns.Rank])[[Columns.User, Columns.Item]].itertuples(
        index=False
    ):
        ranked[user].append(numbers[str(item)])
    return ranked


if __name__ == "__main__":
    main(load)
