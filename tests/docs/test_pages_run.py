"""Commands on pages run: one after the other, as a reader would type them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.documents import PAGES, blocks
from tests.support.paths import ROOT
from tests.support.reading import Server, checkout, follow, serving

ELSEWHERE = {"docs/models-export.md"}
"""Followed by the tests of what they are about."""
RUN = [
    page
    for page in PAGES
    if any("run" in block.words for block in blocks(page)) and str(page.relative_to(ROOT)) not in ELSEWHERE
]
README = ROOT / "README.md"


def _path(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`recommender serve`, for every page that sets nothing."""
    folder = tmp_path_factory.mktemp("checkout")
    checkout(folder)
    with serving("exec recommender serve", folder) as server:
        yield server


def certificates(folder: Path) -> None:
    authority = Authority()
    authority.write_server(folder)
    authority.write_pem(folder / "ca.pem")


WITH_CERTIFICATES = ("docs/client.md", "docs/security.md")
"""Pages that expect certificates."""


@pytest.mark.parametrize(
    "page", [page if page == README else pytest.param(page, marks=pytest.mark.slow) for page in RUN], ids=_path
)
@pytest.mark.timeout(480)
def test_what_a_page_says_runs(page: Path, plain: Server, tmp_path: Path) -> None:
    checkout(tmp_path)
    if str(page.relative_to(ROOT)) in WITH_CERTIFICATES:
        certificates(tmp_path)

    wrote = follow(page, tmp_path, plain)

    for block, output in wrote.items():
        if block.language == "python":
            for promised in re.findall(r"^ *print\(.*\)  # (.+)$", block.text, re.MULTILINE):
                assert promised in output, block
