"""Models that the libraries themselves train on MovieLens-100k: imported, they rank alike, offline and on the wire."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.importers.conftest import run
from tests.support.paths import ROOT
from tests.support.peers import PATIENCE, interpreter
from tests.support.programs import program

pytestmark = pytest.mark.peers

PACKAGES = {
    "rectools": ("rectools[torch]==0.19.0",),
    "recbole": ("recbole==1.2.1", "setuptools<81", "numpy<2", "pandas<3", "scipy<1.15"),
    "implicit": ("implicit==0.7.3", "pandas"),
}
# fmt: off
MODELS = {
    "rectools": (
        "sasrec.model", "sasrec.ckpt", "bert4rec.model", "bert4rec-unmasked.model", "ligr.model", "hstu.model",
        "hstu-without-times.model", "ease.model",
    ),
    "recbole": (
        "sasrec.pth", "gru4rec.pth", "bert4rec.pth", "narm.pth", "core.pth", "ease.pth",
    ),
    "implicit": ("als.npz", "bpr.npz", "bm25.npz"),
}
# fmt: on
Trained = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A library's folder with its models and the data, and its interpreter; each is made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def of(library: str) -> tuple[Path, Path]:
        if library not in made:
            folder = tmp_path_factory.mktemp(library)
            python = interpreter(folder / "environment", *PACKAGES[library])
            packages = folder / "packages"
            command = [
                program("uv"),
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(packages),
                "recbole==1.2.1",
            ]
            subprocess.run(command, check=True, timeout=PATIENCE)
            prepare = ROOT / "examples" / "movielens" / "prepare.py"
            subprocess.run([python, prepare, packages, folder], check=True, timeout=PATIENCE)
            training = Path(__file__).parent / "training" / f"{library}_models.py"
            done = subprocess.run([python, training, folder], capture_output=True, text=True, check=False, timeout=1000)
            assert done.returncode == 0, done.stderr[-2000:]
            made[library] = folder, python
        return made[library]

    return of


@pytest.mark.parametrize(("library", "file"), [(library, file) for library in MODELS for file in MODELS[library]])
def test_a_model_of_a_library_ranks_alike(library: str, file: str, trained: Trained, tmp_path: Path) -> None:
    folder, python = trained(library)
    keyless = library == "implicit" or file == "ease.model"
    keys = ["--item-keys", folder / "items.txt"] if keyless else []
    keys += ["--user-keys", folder / "users.txt"] if file in ("als.npz", "bpr.npz") else []
    code, told = run(
        library, folder / file, "--python", python, "--interactions", folder / "train.csv", *keys,
        "--evaluate", folder / "all.csv", "--output", tmp_path / "1" / "model.onnx", "--name", "movies",
    )  # fmt: skip

    sys.stdout.write(told)  # the report of `-rP` has the metrics
    assert code == 0, told
    assert "for 256 histories" in told
    tied = re.search(r"with a tie \(([\d.]+)%\)", told)
    assert tied is not None
    assert float(tied[1]) <= 1.0


@pytest.mark.parametrize(("library", "other"), [("rectools", "recbole"), ("recbole", "rectools")])
def test_a_model_of_another_library_is_a_sentence(library: str, other: str, trained: Trained, tmp_path: Path) -> None:
    _, python = trained(library)
    folder, _ = trained(other)
    code, told = run(
        library, folder / MODELS[other][0], "--python", python, "--output", tmp_path / "1" / "model.onnx"
    )  # fmt: skip

    assert code == 2
    assert re.search(r"no model that RecTools|cannot be read as RecBole's|is no checkpoint of RecBole", told)
    assert list(tmp_path.iterdir()) == []
