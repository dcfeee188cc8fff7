"""Prepare a version for a registry: its files with the card, and the metadata that MLflow expects."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recommender.errors import ModelError
from recommender.models.artifact import Artifact
from recommender.models.card import CARD_NAME, card_path

_RANKS = {"user_history": 2, "excluded": 2, "candidates": 2, "recommendations": 2, "scores": 2}
_OUTPUTS = ("recommendations", "scores")


@contextlib.contextmanager
def files_of(artifact: Artifact) -> Iterator[list[Path]]:
    """The files of an artifact by the names they are published under, the card last. ModelError if it has no card."""
    if artifact.card is None:
        raise ModelError(f"{artifact.path} has no card to publish: export the model again")
    folder = artifact.path.parent
    beside = folder / CARD_NAME if artifact.release is not None else card_path(artifact.path)
    with tempfile.TemporaryDirectory() as drafts:
        card = Path(drafts) / CARD_NAME
        shutil.copyfile(beside, card)
        yield [*(folder / file.path for file in artifact.card.files), card]


def write_mlmodel(path: Path, run_id: str, artifact: Artifact, ports: frozenset[str]) -> None:
    """Write MLflow's description of the model: an ONNX flavor, and the signature of these inputs and outputs."""
    from mlflow.models import Model, ModelSignature  # noqa: PLC0415 (slow, and optional)
    from mlflow.types import Schema, TensorSpec  # noqa: PLC0415

    def schema(names: list[str]) -> Schema:
        return Schema(
            [
                TensorSpec(np.dtype(np.float32 if name == "scores" else np.int64), (-1,) * _RANKS.get(name, 1), name)
                for name in names
            ]
        )

    inputs = sorted(port for port in ports if port not in {*_OUTPUTS, "fallbacks"})
    signature = ModelSignature(schema(inputs), schema([name for name in _OUTPUTS if name in ports]))
    card = artifact.card
    model = Model(
        artifact_path="model",
        run_id=run_id,
        signature=signature,
        metadata={"recommender_card": CARD_NAME, "name": artifact.name, "card_version": card.version if card else ""},
    )
    version = card.exported_with.get("onnx", "") if card else ""
    model.add_flavor("onnx", data=artifact.path.name, onnx_version=version, code=None)
    model.save(str(path))
