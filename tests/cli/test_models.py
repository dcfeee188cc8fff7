"""`recommender models`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

VERIFY = """
import runpy, sys
sys.argv[1:] = ["models", "verify", "weights/10_model.onnx", "--json"]
try:
    runpy.run_module("recommender", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "grpc"), file=sys.stderr)
"""


def test_a_version_is_verified_without_grpc() -> None:
    done = subprocess.run([sys.executable, "-c", VERIFY], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == []
