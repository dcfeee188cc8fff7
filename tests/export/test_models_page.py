"""The page on exporting: its example is a program, and its commands run."""

from __future__ import annotations

from pathlib import Path

import pytest

from recommender.models.card import Card
from tests.support.paths import ROOT
from tests.support.reading import follow


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_the_pages_example_is_exported_and_served_by_the_pages_commands(tmp_path: Path) -> None:
    follow(ROOT / "docs" / "models-export.md", tmp_path)

    card = Card.model_validate_json((tmp_path / "models" / "10_model.card.json").read_text(encoding="utf-8"))
    assert [file.role for file in card.files] == ["model", "vocabulary", "fallback"]
    assert (card.name, card.items, card.longest_history) == ("shop", 2000, 50)
