"""The documentation site has every page, and its API reference is what the proto says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.site.api_reference import page
from tests.support.paths import ROOT


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    assert len(named) == len(set(named))
    assert {path.name for path in ROOT.glob("docs/*.md")} <= set(named), "add the page to mkdocs.yml"


def test_the_api_reference_is_what_the_proto_says() -> None:
    assert (ROOT / "docs/api-reference.md").read_text(encoding="utf-8") == page(), "run `just docs`"


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/pictures/*.svg")), ids=lambda picture: picture.name)
def test_a_picture_loads_nothing_and_names_no_path_of_a_machine(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")

    assert not re.search(r"""(?:url\(|href=)["']?(?:https?:)?//|[" (]/(?:home|root|tmp|work)/""", text)
