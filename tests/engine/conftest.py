"""Engines of one's own: real files, real ONNX Runtime, closed when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime
import pytest

from recommender.engine.engine import OnnxEngine
from recommender.models.artifact import open_artifact

Load: TypeAlias = Callable[..., OnnxEngine]

_DEVICES = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider"}


@pytest.fixture(autouse=True)
def _waits_for_a_device(request: pytest.FixtureRequest) -> None:
    """A test of a device runs where ONNX Runtime finds one, and says elsewhere that it did not run."""
    for marker, provider in _DEVICES.items():
        if request.node.get_closest_marker(marker) is not None and not _works(provider):
            pytest.skip(f"no device for {provider} on this machine: not run")


def _works(provider: str) -> bool:
    if provider not in onnxruntime.get_available_providers():
        return False
    path = f"{onnxruntime.__path__[0]}/datasets/sigmoid.onnx"
    return provider in onnxruntime.InferenceSession(path, providers=[provider]).get_providers()


@pytest.fixture
def load() -> Iterator[Load]:
    """Open an artifact and load it as the server does."""
    engines = []

    def loaded(path: Path, **arguments: Any) -> OnnxEngine:
        engine = OnnxEngine(open_artifact(path), **{"device": "cpu", **arguments})
        engines.append(engine)
        return engine

    yield loaded
    for engine in engines:
        engine.close()
