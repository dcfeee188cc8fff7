"""The tutorial and its notebook run, with implicit's ALS, which trains in a second, and with RecTools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.balanced import free_ports
from tests.support.paths import ROOT
from tests.support.programs import program

pytestmark = pytest.mark.peers

EXAMPLE = ROOT / "examples" / "movielens"


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "UV": program("uv"), "RECOMMENDER_PORT": str(free_ports(1)[0]), **more}


@pytest.mark.parametrize("library", ["implicit", "rectools"])
def test_the_tutorial_runs(library: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", EXAMPLE / "tutorial.sh", library, tmp_path / "movielens"],
        env=environment(), capture_output=True, text=True, check=False, timeout=1100,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "After Toy Story (1995), Star Wars (1977)" in done.stdout
    assert "movies@1: " in done.stdout
    assert done.stdout.endswith("by movies@2\n")


def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLE / "movielens.ipynb").read_text(encoding="utf-8"))["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
        env=environment(TUTORIAL_LIBRARY="implicit", TUTORIAL_FOLDER=str(tmp_path / "movielens")),
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("by movies@1\n")
