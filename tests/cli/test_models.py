"""`recommender models`, in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.models.proof import Proof
from tests.support import models
from tests.support.paths import ROOT

VERIFY = """
import runpy, sys
sys.argv[1:] = ["models", "verify", "weights/10_model.onnx", "--json"]
try:
    runpy.run_module("recommender", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
found = sorted(name for name in sys.modules if name.partition(".")[0] == "grpc")
print("of grpc:", found, file=sys.stderr)
"""
SLOW_TERMINAL = """
import sys, time

class Slow:
    def __init__(self, stream): self.stream = stream
    def write(self, text):
        time.sleep(1)  # less than the patience of a command that ends, more than it takes to end
        return self.stream.write(text)
    def __getattr__(self, name): return getattr(self.stream, name)

sys.stderr = Slow(sys.stderr)
from recommender.cli.main import main
main()
"""


def test_a_version_is_verified_without_grpc() -> None:
    done = subprocess.run([sys.executable, "-c", VERIFY], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "of grpc: []"


def test_the_last_lines_of_the_log_are_written_before_the_process_ends(tmp_path: Path) -> None:
    model = models.write_model(tmp_path / "5_model.onnx", models.table(), default_k=5)
    done = subprocess.run(
        [sys.executable, "-c", SLOW_TERMINAL, "models", "verify", str(model), "--json"],
        env={**os.environ, "RECOMMENDER_NUM_RECOMMENDATIONS": "5"}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert '"level": "warning"' in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not exist on Windows")
def test_a_version_is_measured_on_the_event_loop_that_serves_it() -> None:
    command = [sys.executable, "-m", "recommender", "models", "verify", "weights/10_model.onnx", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)

    proof = Proof.from_json(done.stdout)
    assert proof.event_loop == "uvloop"
    assert len(proof.measured) == len(proof.observations) > 0


@pytest.mark.slow  # it imports MLflow
def test_a_registry_that_is_none_is_a_sentence() -> None:
    for uri in ("nonsense://x", "nonsense"):
        done = subprocess.run(
            [sys.executable, "-m", "recommender", "models", "list", "--registry", uri],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.startswith("recommender: ")
        assert "Traceback" not in done.stderr
