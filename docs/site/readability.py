"""Print how easy each page is to read: `just docs-readability`.

Flesch reading ease: 60 and more is plain English, below 30 is hard work. Code blocks, tables and headings are left
out, and each name in backticks counts as one short word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import textstat

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/decisions/*.md"))]
GENERATED = {"api-reference.md", "licences.md", "settings.md"}
LONG = 25
"""Words that a sentence should have at most."""


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page's paragraphs and lists."""
    page = re.sub(r"^( *)```.*?^\1```$", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", page):
        if not re.match(r"\s*(?:[#|<]|:::)", paragraph):
            text = re.sub(r"^\s*(?:[-*>]|\d+\.) ", "", paragraph)
            text = re.sub(r"`[^`]+`", "name", text)
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
            text = " ".join(text.replace("*", "").split())
            yield from filter(None, re.split(r"(?<=[.?!])\s+(?=[A-Z])", text))


def main() -> None:
    """Print a table: a line for each page, hardest first, and one for all."""
    found = {}
    for page in PAGES:
        if page.name not in GENERATED and (said := list(sentences(page.read_text(encoding="utf-8")))):
            found[str(page.relative_to(ROOT))] = said
    print("| page | reading ease | words | words a sentence | longer than 25 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows = [(ease(said), page, said) for page, said in found.items()]
    every = [sentence for said in found.values() for sentence in said]
    for reading, name, said in [*sorted(rows), (ease(every), "all", every)]:
        lengths = [len(sentence.split()) for sentence in said]
        long = sum(length > LONG for length in lengths)
        words = sum(lengths)
        print(f"| {name} | {reading:.0f} | {words} | {words / len(said):.1f} | {long} |")


def ease(said: list[str]) -> float:
    """Flesch reading ease; each sentence ends with a stop, so that list entries are not joined to one."""
    return float(textstat.flesch_reading_ease("\n".join(f"{sentence.rstrip('.:;,')}." for sentence in said)))


if __name__ == "__main__":
    main()
