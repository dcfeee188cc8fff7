"""Measure whether an imported SASRec is as quick as our own of the same size.

All are random and of one size. `recbole` and `rectools` are their networks, rewritten, with a state dict's numbers.
`.pt2` and `ONNX` are our own network as an encoder that takes its full width only, so every history costs as much as
the longest. Each round runs every file once, on one thread; figures are medians of its CPU time, so that other programs
disturb little. A ratio above 1 is quicker than our own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn

from recommender.export import ExportOptions, export_model
from recommender.export.networks.sasrec import SasRec
from recommender.importers import ImportOptions, import_model
from recommender.importers.networks.numbers import Numbers
from recommender.importers.networks.recbole import RecBoleSasRec
from recommender.importers.networks.rectools import RecToolsSasRec
from recommender.importers.networks.sizes import Sizes

WIDTH = 50
Feeds = Mapping[str, npt.NDArray[np.int64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    torch.manual_seed(1)
    with TemporaryDirectory() as folder:
        files = {
            "ours": export_model(
                ExportOptions(
                    network="sasrec",
                    items=given.items,
                    dim=given.dim,
                    layers=given.layers,
                    heads=given.heads,
                    longest_history=WIDTH,
                    output=Path(folder, "ours.onnx"),
                )
            )
        }
        for name, network in (("recbole", _recbole(given)), ("rectools", _rectools(given))):
            options = ExportOptions(network=f"{name}:SASRec", output=Path(folder, f"{name}.onnx"))
            files[name] = export_model(options, network=network.eval())
        files |= _encoders(Path(folder), given)
        sessions = {name: _session(path) for name, path in files.items()}
        others = [name for name in sessions if name != "ours"]
        print(f"| histories | {' | '.join(f'{name}, ms' for name in sessions)} | {' | '.join(others)} |")
        print(f"| --- |{' ---: |' * (len(sessions) + len(others))}")
        for what, lengths in _lengths(given.batch).items():
            took = _measure(sessions, _feeds(lengths, given.items), given.rounds)
            shown = " | ".join(f"{took[name] * 1e3:.2f}" for name in sessions)
            ratios = " | ".join(f"{took['ours'] / took[name]:.2f}" for name in others)
            print(f"| {what} | {shown} | {ratios} |")


def _lengths(batch: int) -> dict[str, npt.NDArray[np.int64]]:
    """ETUDE's lengths are a power law; most sessions are short."""
    random = np.random.default_rng(1)
    return {
        "ETUDE's lengths": np.minimum(random.zipf(1.8, batch), WIDTH).astype(np.int64),
        f"all of {WIDTH}": np.full(batch, WIDTH, np.int64),
        "one of 5": np.full(1, 5, np.int64),
    }


def _feeds(lengths: npt.NDArray[np.int64], items: int) -> Feeds:
    random = np.random.default_rng(2)
    return {
        "user_history": random.integers(0, items, (len(lengths), int(lengths.max()))),
        "history_length": lengths,
        "k": np.array([21], np.int64),
        "excluded": np.zeros((0, 2), np.int64),
        "candidates": np.zeros((len(lengths), 0), np.int64),
        "candidates_length": np.zeros(len(lengths), np.int64),
    }


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # that of the caller, whose CPU time is told
    options.add_free_dimension_override_by_name("nnz", 0)
    options.add_free_dimension_override_by_name("c", 0)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _measure(sessions: Mapping[str, ort.InferenceSession], feeds: Feeds, rounds: int) -> dict[str, float]:
    took: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(rounds + 5):
        for name, session in sessions.items():
            began = time.thread_time()
            session.run(None, dict(feeds))
            if round_ >= 5:
                took[name].append(time.thread_time() - began)
    return {name: statistics.median(each) for name, each in took.items()}


def _layers(prefix: str, names: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(3)
    return {f"{prefix}{name}": 0.1 * random.normal(size=shape).astype(np.float32) for name, shape in names.items()}


def _encoders(folder: Path, given: argparse.Namespace) -> dict[str, Path]:
    """Our own network as a `.pt2` and as an ONNX file of others, imported by `vectors --encoder`."""
    network = SasRec(given.items, given.dim, given.layers, given.heads, WIDTH).eval()
    np.save(folder / "vectors.npy", network.items.weight.detach().numpy())
    example = torch.zeros(3, WIDTH, dtype=torch.int64), torch.full((3,), WIDTH)
    shapes = ({0: torch.export.Dim("batch")},) * 2
    with torch.no_grad():
        program = torch.export.export(network, example, dynamic_shapes=shapes)
        torch.export.save(program, folder / "encoder.pt2")
        torch.onnx.export(network, example, folder / "encoder.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    found = {}
    for name, file in ((".pt2", "encoder.pt2"), ("ONNX", "encoder.onnx")):
        options = ImportOptions(
            library="vectors",
            source=folder / "vectors.npy",
            encoder=folder / file,
            padding_side="right",
            first_item=0,
            output=folder / f"{file}.d" / "model.onnx",
        )
        found[name] = import_model(options)
    return found


def _recbole(given: argparse.Namespace) -> nn.Module:
    dim = given.dim
    arrays = _layers("", {"item_embedding.weight": (given.items + 1, dim), "position_embedding.weight": (WIDTH, dim)})
    arrays |= _layers("LayerNorm.", {"weight": (dim,), "bias": (dim,)})
    for layer in range(given.layers):
        square = {
            f"multi_head_attention.{part}.{kind}": (dim, dim) if kind == "weight" else (dim,)
            for part in ("query", "key", "value", "dense")
            for kind in ("weight", "bias")
        }
        fed = {
            f"feed_forward.dense_{part}.{kind}": (dim, dim) if kind == "weight" else (dim,)
            for part in (1, 2)
            for kind in ("weight", "bias")
        }
        norms = {
            f"{part}.LayerNorm.{kind}": (dim,)
            for part in ("multi_head_attention", "feed_forward")
            for kind in ("weight", "bias")
        }
        arrays |= _layers(f"trm_encoder.layer.{layer}.", {**square, **fed, **norms})
    sizes = {"n_layers": given.layers, "n_heads": given.heads, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    return RecBoleSasRec(Numbers(arrays, "RecBole"), Sizes(sizes, "RecBole"))


def _rectools(given: argparse.Namespace) -> nn.Module:
    dim = given.dim
    arrays = _layers("", {"item_embeddings": (given.items + 1, dim), "positions": (WIDTH, dim)})
    arrays |= _layers("last_layernorm.", {"weight": (dim,), "bias": (dim,)})
    for layer in range(given.layers):
        attention = {
            "multi_head_attn.in_proj_weight": (3 * dim, dim),
            "multi_head_attn.in_proj_bias": (3 * dim,),
            "multi_head_attn.out_proj.weight": (dim, dim),
            "multi_head_attn.out_proj.bias": (dim,),
        }
        fed = {
            f"feed_forward.ff_linear_{part}.{kind}": (dim, dim) if kind == "weight" else (dim,)
            for part in (1, 2)
            for kind in ("weight", "bias")
        }
        norms = {f"{part}_layer_norm.{kind}": (dim,) for part in ("q", "ff") for kind in ("weight", "bias")}
        arrays |= _layers(f"transformer_blocks.{layer}.", {**attention, **fed, **norms})
    sizes = {
        "session_max_len": WIDTH,
        "n_heads": given.heads,
        "n_blocks": given.layers,
        "use_scale_factor": False,
        "distance": "dot",
        "layers": "SASRecTransformerLayers",
        "use_key_padding_mask": False,
        "ff_activation": "relu",
    }
    return RecToolsSasRec(Numbers(arrays, "RecTools"), Sizes(sizes, "RecTools"))


if __name__ == "__main__":
    main()
