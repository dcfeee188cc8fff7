"""What the documents say is what is there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support.documents import PAGES, blocks
from tests.support.paths import ROOT
from tests.support.programs import program


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_that_pages_name_exist(page: Path) -> None:
    listed = subprocess.run([program("just"), "--summary"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    recipes = set(listed.split())
    for recipe in re.findall(r"`just ([a-z][a-z-]*)", page.read_text(encoding="utf-8")):
        assert recipe in recipes


def test_ci_runs_the_commands_of_the_readme_as_they_stand_there() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    commands = [line for block in blocks(ROOT / "README.md") if "ci" in block.words for line in block.text.splitlines()]

    assert [command.split()[-2:] for command in commands] == [["recommender", "demo"], ["just", "test"]]
    assert 'commands_of "$work/recommender/README.md"' in script
    assert "```sh ci" in script
    assert not any(command in script for command in commands)


def test_the_workflow_runs_what_ci_runs() -> None:
    assert "bash .ci/run" in (ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8")


def test_the_citation_says_what_the_project_says() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert {key: cited[key] for key in ("version", "license")} == {key: project[key] for key in ("version", "license")}
    assert (cited["title"], cited["cff-version"], cited["type"]) == (project["name"], "1.2.0", "software")


def test_every_package_is_on_the_page_of_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    picture = (ROOT / "docs/pictures/architecture.svg").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "recommender").glob("*/__init__.py")}
    assert len(packages) > 10
    for package in packages - {"recommend_api"}:
        assert f"`{package}`" in page, package
    for name in packages | {"client", "domain", "errors", "histogram", "threads"}:
        assert re.search(rf">[^<]*\b{name}\b", picture), name


def test_decisions_are_numbered_once_and_say_their_number() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]

    assert numbers == list(range(1, len(pages) + 1))
    for number, page in zip(numbers, pages, strict=True):
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. ")


def test_the_list_of_pages_has_every_page() -> None:
    listed = set(re.findall(r"\]\(([a-z-]+\.md)\)", (ROOT / "docs/pages.md").read_text(encoding="utf-8")))

    assert listed | {"pages.md"} == {page.name for page in (ROOT / "docs").glob("*.md")}
