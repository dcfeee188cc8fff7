"""All inputs of the corpus, findings included, end with an answer or with an error raised on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_no_entry_of_the_corpus_is_a_surprise(name: str) -> None:
    entries = sorted((CORPUS / name).iterdir())
    assert entries
    for entry in entries:
        try:
            TARGETS[name](entry.read_bytes())
        except Exception as error:
            error.add_note(f"the entry is {entry}")
            raise
