"""The page on exporting: its example is a program, and its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.models.card import Card
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "models-export.md").read_text(encoding="utf-8")


@pytest.mark.timeout(240)
def test_the_pages_example_is_exported_and_served_by_the_pages_commands(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shop.py").write_text(program, encoding="utf-8")
    commands = next(block for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) if "shop.py" in block)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands.splitlines():
        done = subprocess.run(  # noqa: S602 (the page's own commands)
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    card = Card.model_validate_json((tmp_path / "models" / "10_model.card.json").read_text(encoding="utf-8"))
    assert [file.role for file in card.files] == ["model", "vocabulary", "fallback"]
    assert (card.name, card.items, card.longest_history) == ("shop", 2000, 50)
