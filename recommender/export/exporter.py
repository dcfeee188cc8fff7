"""The export, stage by stage: network, encoder, graph, draft file, check, card, and only then the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recommender.card import Card, Golden
from recommender.export.artifact import card_files, drafts, publish, write_model
from recommender.export.check import History, ModelFile, Scores, check_model, padded
from recommender.export.encoder import OPSET, add_encoder, export_encoder
from recommender.export.errors import ExportError
from recommender.export.graph import build_graph
from recommender.export.network import ReferenceNetwork
from recommender.export.options import MAX_K, ExportOptions
from recommender.export.table import Layout, pack
from recommender.export.ties import check_ties

Progress = Callable[[str, float], None]


def export_model(options: ExportOptions, progress: Progress = lambda _stage, _share: None) -> Path:
    """Export a network as a model file with its card beside it and return the file's path.

    `progress` is called with what is being done and the share of the whole that is done, 0 to 1. The file is checked
    against the torch network before it takes its place; until then an older file there stays as it was.

    Raises ExportError where the network, its numbers or the options do not make a model that answers right.
    """
    progress("building the network", 0.0)
    network = ReferenceNetwork(options.items, options.dim, options.seed)
    embeddings, bias = _item_vectors(network)
    items, size = embeddings.shape
    max_k = _max_k(options, items)
    longest: int | None = getattr(network, "longest_history", None)

    progress("tracing the encoder", 0.1)
    encoder = export_encoder(network, longest)

    progress("checking the head on ties", 0.5)
    check_ties(items, size, max_k, bias=bias is not None)

    progress("building the graph", 0.6)
    layout = Layout(items, size + (bias is not None))
    table = pack(embeddings, bias, layout)
    histories = _histories(items, longest)
    scores, scale = _torch_scores(network, embeddings, bias, histories)
    metadata = {
        "name": options.model_name,
        "version": options.version,
        "network": options.network,
        "items": str(items),
        "embedding_size": str(size),
        "default_k": str(options.num_recommendations),
        "max_k": str(max_k),
        "longest_history": "" if longest is None else str(longest),
    }

    def build(tolerance: float | None) -> list[Path]:
        known = metadata if tolerance is None else {**metadata, "score_tolerance": f"{tolerance:.6g}"}
        model = build_graph(
            lambda g: add_encoder(g, encoder, embeddings, columns=layout.columns),
            layout,
            largest=float(np.abs(table).max()),
            bias=bias is not None,
            metadata=known,
        )
        return write_model(model, table, folder / options.path.name, options.external_data_bytes)

    with drafts(options.path) as folder:
        progress("writing a draft", 0.65)
        build(None)
        progress("checking the draft", 0.7)
        tolerance = check_model(
            ModelFile(folder / options.path.name),
            scores,
            histories,
            scale=scale,
            default_k=options.num_recommendations,
            max_k=max_k,
        )
        progress("writing the model", 0.9)
        files = build(tolerance)
        model = ModelFile(folder / options.path.name)
        card = Card(
            name=options.model_name,
            version=options.version,
            network=options.network,
            items=items,
            embedding_size=size,
            default_k=options.num_recommendations,
            max_k=max_k,
            longest_history=longest,
            score_tolerance=float(f"{tolerance:.6g}"),
            opset=OPSET,
            exported_by=options.exported_by,
            exported_at=datetime.now(UTC).replace(microsecond=0),
            exported_with={name: version(name) for name in ("torch", "onnx", "onnxruntime", "recommender")},
            files=card_files(files),
            golden=_golden(model, histories[:3], options.num_recommendations),
        )
        publish(files, card, options.path)
    progress("done", 1.0)
    return options.path


def _item_vectors(network: nn.Module) -> tuple[Scores, Scores | None]:
    """Item embeddings [items, d] and, where the network has one, the item bias [items]."""
    return _numbers(network, "item_embeddings"), _numbers(network, "item_bias") if hasattr(
        network, "item_bias"
    ) else None


def _numbers(network: nn.Module, method: str) -> Scores:
    tensor: Tensor = getattr(network, method)()
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _max_k(options: ExportOptions, items: int) -> int:
    for name, k in (("num_recommendations", options.num_recommendations), ("max_k", options.max_k)):
        if k is not None and k > items:
            raise ExportError(f"{name} is {k}, but the catalogue has {items} items; give at most {items}.")
    return options.max_k if options.max_k is not None else max(options.num_recommendations, min(items, MAX_K))


def _histories(items: int, longest: int | None) -> list[History]:
    """Histories to check with: three for the card, then ragged ones up to the longest."""
    top = longest if longest is not None else 200
    wanted = [[1, 2, 3, 4], [0], [items - 1, items // 10 - 1, items // 100 - 1]]
    random = np.random.default_rng(1)
    lengths = [1, 2, 3, 5, 8, 21, top // 2 + 1, top]
    drawn = [random.integers(0, items, min(length, top)).tolist() for length in lengths]
    repeated = [[items - 1, items - 1, 0]]
    return [[item % items for item in history][:top] for history in (*wanted, *repeated, *drawn)]


def _torch_scores(
    network: nn.Module, embeddings: Scores, bias: Scores | None, histories: Sequence[History]
) -> tuple[Scores, float]:
    """The network's scores [len(histories), items], each history by itself and unpadded; and the bound of |score|."""
    with torch.no_grad():
        vectors = np.concatenate([network(*map(torch.from_numpy, padded([history]))).numpy() for history in histories])
    scores = vectors @ embeddings.T
    scale = float(np.linalg.norm(vectors, axis=1).max() * np.linalg.norm(embeddings, axis=1).max())
    if bias is not None:
        scores += bias
        scale += float(np.abs(bias).max())
    return scores, scale


def _golden(model: ModelFile, histories: Sequence[History], k: int) -> tuple[Golden, ...]:
    """What the model itself answers, history by history."""
    return tuple(
        Golden(
            item_ids=tuple(history), recommendations=tuple(got.ids[0].tolist()), scores=tuple(got.scores[0].tolist())
        )
        for history in histories
        for got in (model.rank([history], k),)
    )
