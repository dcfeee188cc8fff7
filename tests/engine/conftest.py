"""Tests of a device run where ONNX Runtime finds one."""

from __future__ import annotations

import onnxruntime
import pytest

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
