"""Other projects' programs for tests marked `peers`, each in a separate environment that uv keeps in its cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.programs import program

PATIENCE = 600.0
"""Long enough to download what is not in the cache."""


def told_by(script: Path, *arguments: str, packages: tuple[str, ...]) -> Any:
    """What a Python script writes as JSON that runs with these packages, as pip names them, and without ours."""
    named = [word for package in packages for word in ("--with", package)]
    command = [program("uv"), "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable, *named]
    done = subprocess.run(
        [*command, "python", script, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, f"{script.name}: {done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def interpreter(folder: Path, *packages: str) -> Path:
    """The interpreter of an environment with these packages, which stays as long as its folder."""
    python = folder / "bin" / "python"
    subprocess.run([program("uv"), "venv", "--quiet", "--python", sys.executable, folder], check=True, timeout=PATIENCE)
    command = [program("uv"), "pip", "install", "--quiet", "--python", str(python), *packages]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return python
