"""What users install is the wheel: alone in an empty environment it serves a model from a mounted folder."""

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


def test_the_wheel_alone_serves_a_model_from_a_folder(wheel: Path, locked: Path, tmp_path: Path) -> None:
    folder, python = tmp_path / "models", tmp_path / "venv" / "bin" / "python"
    subprocess.run([program("uv"), "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    install = [program("uv"), "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "--requirement", str(locked)], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    folder.mkdir()
    for file in (ROOT / "weights").glob("10_model.*"):
        shutil.copy(file, folder)
    # Nothing of this repository is reachable: not its folder, not its settings, not its environment.
    empty = {"PATH": os.defpath, "HOME": str(tmp_path), "RECOMMENDER_WEIGHTS_DIR": str(folder)}
    command = tmp_path / "venv" / "bin" / "recommender"

    with subprocess.Popen(
        [command, "serve", "--port", "0"], cwd=folder, env=empty, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        log = ""
        try:
            for line in server.stderr:
                log += line
                if '"ready"' in line:
                    break
            found = re.search(r'"address": "127\.0\.0\.1:(\d+)"', log)
            assert found, log
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

    # ONNX Runtime's official builds report to Microsoft unless told not to, and leave a folder for it.
    assert not (tmp_path / ".cache").exists()


def test_the_wheel_carries_its_licence_and_its_types_and_nothing_beside(wheel: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", wheel], capture_output=True, text=True, check=True
    ).stdout

    names = [line.split()[0] for line in listed.splitlines()[1:]]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"recommender"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "recommender/py.typed" in names


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
