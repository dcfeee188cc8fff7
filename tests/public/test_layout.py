"""The folders are the architecture: few modules a folder, small modules, small classes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "recommender"
GENERATED = PACKAGE / "recommend_api"
MOST_MODULES, MOST_AT_THE_TOP = 15, 8
LONGEST_MODULE, LONGEST_CLASS, MOST_METHODS = 350, 250, 20

FOLDERS = [path.parent for path in PACKAGE.rglob("__init__.py") if GENERATED not in (path.parent, *path.parents)]
MODULES = [path for path in PACKAGE.rglob("*.py") if GENERATED not in path.parents]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_can_be_seen_at_a_glance(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]

    assert len(modules) <= (MOST_AT_THE_TOP if folder == PACKAGE else MOST_MODULES), sorted(map(str, modules))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_classes_are_small(module: Path) -> None:
    text = module.read_text(encoding="utf-8")

    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
            assert (node.end_lineno or 0) - node.lineno < LONGEST_CLASS, node.name
            assert len(methods) <= MOST_METHODS, (node.name, len(methods))
