"""The reference model of this package: small, exact, with random weights."""

from __future__ import annotations

from pathlib import Path

from recommender.models.artifact import Artifact, read_card
from recommender.models.card import card_path

REFERENCE = "reference"
"""What RECOMMENDER_MODEL and `recommender serve` call it."""

_PACKAGE = Path(__file__).parents[2]


def reference_model() -> Path:
    """The model file: inside the package where a wheel was installed, else in the checkout's `weights` folder."""
    name = "10_model.onnx"
    inside = _PACKAGE / "weights" / name
    return inside if inside.is_file() else _PACKAGE.parent / "weights" / name


def is_reference(artifact: Artifact) -> bool:
    """Whether these are the bytes of the reference model, wherever they are served from."""
    beside = card_path(reference_model())
    return beside.is_file() and any(file.sha256 == artifact.sha256 for file in read_card(beside).files)
