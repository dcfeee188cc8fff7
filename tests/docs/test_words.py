"""Pages, comments, docstrings and messages have none of the words that a reader must translate in the head."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.documents import PAGES
from tests.support.paths import ROOT

BETTER = {
    r"\banew\b": "again; reload",
    r"\bas (?:many|much|long|large) as may be\b": "up to the limit",
    r"\bdawdl\w+": "slow",
    r"\bfull house\b": "full backlog",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bof ours\b": "our …; of recommender",
    r"\bstrangers?\b": "untrusted callers",
    r"\bthe former ones?\b": "the previous …",
    r"\b(?:that which|whoever)\b": "name them: callers, clients",
    r"\bthe interpreter (?:is handed|that is handed|for itself)": "the GIL",
    r"\b(?:that|if|where) (?:there|it|they)? ?(?:is|are) none\b": "absent; without; if malformed",
    r'"""(?:Who|Whose|Whatever|What|None where) [a-z]+': "begin with the noun or the verb",
    r"(?:^|[.:] )(?:Who|Whose|Whatever) [a-z]+s?\b(?![^.\n]*\?)": "begin with the noun or the verb",
}
"""Patterns, and what to write instead."""
GENERATED = {"api-reference.md", "licences.md", "settings.md"}

ROOMS = [
    *sorted(
        path
        for path in (ROOT / "recommender").iterdir()
        if (path.is_dir() or path.suffix == ".py") and path.name[0] != "_"
    ),
    *(ROOT / name for name in ("bench", "deploy", "docs/site", "examples", "proto")),
]


def faults(text: str) -> list[str]:
    """The words to avoid in a text, code in backticks left out, each with the better ones."""
    prose = re.sub(r"^( *)```.*?^\1```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    return [
        f"{word!r}: {better}" for pattern, better in BETTER.items() for word in re.findall(pattern, prose, re.MULTILINE)
    ]


def sources(room: Path) -> list[Path]:
    """The Python and proto files of a package, without generated ones."""
    found = [room] if room.is_file() else [*room.rglob("*.py"), *room.rglob("*.proto")]
    return [path for path in found if not {".venv", "recommend_api"} & {*path.parts} or path.suffix == ".proto"]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_has_none_of_these_words(page: Path) -> None:
    assert faults(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_package_has_none_of_these_words(room: Path) -> None:
    for path in sources(room):
        assert faults(path.read_text(encoding="utf-8")) == [], path


def test_the_words_are_found_where_they_are_and_not_in_code() -> None:
    said = "Files are read anew. Who drains is unready.\n\n```sh run\necho anew\n```\n\nThe key `mend` is none of ours."

    assert faults(said) == [
        "'anew': again; reload",
        "'of ours': our …; of recommender",
        "'. Who drains': begin with the noun or the verb",
    ]
