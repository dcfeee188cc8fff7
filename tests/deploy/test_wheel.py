"""What users install is the wheel: alone in an empty environment it serves a model from a folder, or its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.facts import FACTS
from tests.support.paths import ROOT
from tests.support.programs import program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([program("uv"), "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What serving installs, as the lock names it."""
    path = tmp_path_factory.mktemp("locked") / "requirements.txt"
    export = [program("uv"), "export", "--quiet", "--locked", "--no-emit-project", "--output-file", str(path)]
    subprocess.run(export, cwd=ROOT, check=True)
    return path


@pytest.fixture(scope="module")
def recommender(wheel: Path, locked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in an environment that has the wheel, its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([program("uv"), "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [program("uv"), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    subprocess.run([*install, "--requirement", str(locked)], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    return folder / "bin" / "recommender"


def nothing_else(home: Path) -> dict[str, str]:
    """An environment from which nothing of this repository is reachable."""
    return {"PATH": os.defpath, "HOME": str(home)}


def test_the_wheel_alone_runs_the_demo_in_an_empty_folder(recommender: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [recommender, "demo"],
        cwd=tmp_path, env=nothing_else(tmp_path), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert " ".join(str(item).rjust(5) for item in FACTS[1, 2, 3, 4]) in done.stdout
    assert done.stderr.count("\n") == done.stderr.count("the model has random weights") == 1


def test_without_a_model_the_start_names_the_one_in_the_wheel(recommender: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [recommender, "serve", "--port", "0"],
        cwd=tmp_path, env=nothing_else(tmp_path), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 2
    assert "there is no model file weights/10_model.onnx" in done.stderr
    assert "`recommender serve reference`, or RECOMMENDER_MODEL=reference" in done.stderr


@pytest.mark.parametrize("how", ["folder", "argument", "environment"])
def test_the_wheel_alone_serves(recommender: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    empty, words = nothing_else(tmp_path), ["serve", "--port", "0"]
    if how == "folder":
        for file in (ROOT / "weights").glob("10_model.*"):
            shutil.copy(file, folder)
        empty["RECOMMENDER_WEIGHTS_DIR"] = str(folder)
    elif how == "argument":
        words.append("reference")
    else:
        empty["RECOMMENDER_MODEL"] = "reference"
    command = recommender

    with subprocess.Popen([command, *words], cwd=folder, env=empty, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        log = ""
        try:
            for line in server.stderr:
                log += line
                if '"ready"' in line:
                    break
            found = re.search(r'"address": "127\.0\.0\.1:(\d+)"', log)
            assert found, log
            assert log.count("the model has random weights") == 1
            asked = subprocess.run(
                [command, "client", "--port", found[1], "--items", "1,2,3,4"],
                cwd=folder, env=empty, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert asked.returncode == 0, asked.stderr
            assert " ".join(str(item).rjust(5) for item in FACTS[1, 2, 3, 4]) in asked.stdout
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()

    # ONNX Runtime's official builds report to Microsoft by default, and leave a folder for it.
    assert not (tmp_path / ".cache").exists()


def test_the_wheel_carries_its_licence_and_its_types_and_nothing_beside(wheel: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", wheel], capture_output=True, text=True, check=True
    ).stdout

    names = [line.split()[0] for line in listed.splitlines()[1:]]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"recommender"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {"recommender/py.typed", "recommender/weights/10_model.onnx", "recommender/weights/10_model.card.json"} <= {
        *names
    }


@pytest.mark.parametrize("name", ["torch", "onnx", "onnxscript"])
def test_serving_installs_none_of_what_only_export_needs(locked: Path, name: str) -> None:
    assert not re.search(rf"^{name}==", locked.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_dependency_has_an_upper_bound() -> None:
    for path in (ROOT / "pyproject.toml", ROOT / "deploy" / "checkers" / "pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))
        groups = [
            project["project"]["dependencies"],
            *project["project"].get("optional-dependencies", {}).values(),
            *project.get("dependency-groups", {}).values(),
        ]
        for dependency in (Requirement(each) for group in groups for each in group):
            operators = {clause.operator for clause in dependency.specifier}
            assert dependency.name == "recommender" or operators & {"<", "<=", "=="}, f"{path.name}: {dependency}"
