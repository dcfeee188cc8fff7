"""Both builds of ONNX Runtime, each in a separate environment, on a machine without a CUDA device.

uv makes the environments, with copies of this one's packages by version. The GPU build is installed without NVIDIA's
libraries, which `just setup-cuda` adds: the start is refused before they are needed.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import models
from tests.support.programs import program

ROOT = Path(__file__).parents[2]
LOCKED = re.search(r'name = "onnxruntime-gpu"\nversion = "([^"]+)"', (ROOT / "uv.lock").read_text(encoding="utf-8"))
WHEELS = {"onnxruntime": version("onnxruntime"), "onnxruntime-gpu": LOCKED[1] if LOCKED else ""}
NEEDED = [
    required.name
    for required in map(Requirement, requires("recommender") or ())
    if (required.marker is None or required.marker.evaluate({"extra": ""})) and required.name not in WHEELS
]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="the GPU build exists for Linux and Windows"),
]


def environment(folder: Path, *wheels: str) -> Path:
    """The Python of a new environment that has this program and those builds of ONNX Runtime."""
    subprocess.run([program("uv"), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [program("uv"), "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, *(f"{name}=={version(name)}" for name in NEEDED)], check=True)
    subprocess.run([*install, "--no-deps", "flatbuffers", "packaging", str(ROOT)], check=True)
    for wheel in wheels:
        subprocess.run([*install, "--no-deps", f"{wheel}=={WHEELS[wheel]}"], check=True)
    return python


@pytest.fixture(scope="module")
def cpu_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("cpu") / "venv", "onnxruntime")


@pytest.fixture(scope="module")
def gpu_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("gpu") / "venv", "onnxruntime-gpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.batched(tmp_path / "10_model.onnx", models.table(), metadata={"recommender.items": "50"}, k=10)


def serve(python: Path, model: Path, device: str) -> tuple[int, str]:
    """Start the server, ask it to stop once it is ready, and give its exit code and everything it wrote."""
    settings = {
        "RECOMMENDER_MODEL": str(model),
        "RECOMMENDER_DEVICE": device,
        "RECOMMENDER_PORT": "0",
        "RECOMMENDER_LOG_FORMAT": "json",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RECOMMENDER_", "PYTHON"))}
    written = []
    with subprocess.Popen(
        [str(python), "-m", "recommender", "serve"],
        cwd=model.parent,
        env=kept | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        for line in server.stdout:
            written.append(line)
            if '"ready"' in line:
                server.send_signal(signal.SIGTERM)
    return server.returncode, "".join(written)


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_device = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_cpu_build_serves(cpu_build: Path, model: Path, device: str) -> None:
    code, written = serve(cpu_build, model, device)
    assert code == 0, written
    assert '"provider": "CPUExecutionProvider"' in written
    assert "the model runs on the CPU" not in written


def test_the_cpu_build_refuses_cuda_and_says_how_to_get_it(cpu_build: Path, model: Path) -> None:
    code, written = serve(cpu_build, model, "cuda")
    assert code == 2
    assert "RECOMMENDER_DEVICE is cuda" in written
    assert "just setup-cuda" in written
    assert "Traceback" not in written


@without_device
def test_the_gpu_build_without_a_device_serves_on_the_cpu_and_says_why(gpu_build: Path, model: Path) -> None:
    code, written = serve(gpu_build, model, "auto")
    assert code == 0, written
    assert '"provider": "CPUExecutionProvider"' in written
    assert "the model runs on the CPU" in written
    assert "libcuda.so.1: cannot open shared object file" in written


@without_device
def test_the_gpu_build_without_a_device_refuses_cuda(gpu_build: Path, model: Path) -> None:
    code, written = serve(gpu_build, model, "cuda")
    assert code == 2
    assert "ONNX Runtime could not start CUDAExecutionProvider: libcuda.so.1" in written
    assert "Traceback" not in written


def test_the_gpu_build_serves_on_the_cpu_when_told_to(gpu_build: Path, model: Path) -> None:
    code, written = serve(gpu_build, model, "cpu")
    assert code == 0, written
    assert "the model runs on the CPU" not in written


def test_both_builds_in_one_environment_are_refused(tmp_path: Path, model: Path) -> None:
    python = environment(tmp_path / "venv", "onnxruntime", "onnxruntime-gpu")
    code, written = serve(python, model, "auto")
    assert code == 2
    assert f"onnxruntime {WHEELS['onnxruntime']} and onnxruntime-gpu {WHEELS['onnxruntime-gpu']}" in written
    assert "are both installed" in written
    assert "Traceback" not in written
