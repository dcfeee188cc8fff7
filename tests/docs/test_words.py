"""Pages say things in the words of the trade; what this list has must be translated in the reader's head."""

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
    r"(?:^|[.:] )(?:Who|Whose|Whatever) [a-z]+s?\b(?![^.\n]*\?)": "begin with the noun or the verb",
}
"""Patterns, and what to write instead."""
GENERATED = {"api-reference.md", "licences.md", "settings.md"}
NOT_YET = {
    "CHANGELOG.md",
    "docs/catalogue.md",
    "docs/long-tests.md",
    "docs/models.md",
    "docs/observability.md",
    "docs/performance-peers.md",
    "docs/performance.md",
}
"""Pages that still have some of them."""


def faults(text: str) -> list[str]:
    """What a page says in such words, code left out, each with the better ones."""
    prose = re.sub(r"^( *)```.*?^\1```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = {better: re.findall(pattern, prose, re.MULTILINE) for pattern, better in BETTER.items()}
    return [f"{word!r}: {better}" for better, words in found.items() for word in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_none_of_these_words(page: Path) -> None:
    if str(page.relative_to(ROOT)) in NOT_YET or page.name in GENERATED:
        return
    assert faults(page.read_text(encoding="utf-8")) == []


def test_the_words_are_found_where_they_are_and_not_in_code() -> None:
    said = "Files are read anew. Who drains is unready.\n\n```sh run\necho anew\n```\n\nThe key `mend` is none of ours."

    assert faults(said) == [
        "'anew': again; reload",
        "'of ours': our …; of recommender",
        "'. Who drains': begin with the noun or the verb",
    ]
