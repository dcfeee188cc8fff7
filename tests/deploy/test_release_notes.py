"""A release page says how to install the version and what changed; its links work there."""

from __future__ import annotations

import pytest

from deploy.release_notes import notes

PROJECT = '[project]\nname = "recommender"\nversion = "0.2.0"\n'
CHANGELOG = """# Changelog

## Unreleased

## 0.2.0 - 2027-01-01

### Added

- Filters: [how](docs/catalogue.md#filters), in [CEL](https://cel.dev).

## 0.1.0 - 2026-11-26

- The first.
"""


def test_notes_install_the_version_and_link_to_its_files() -> None:
    assert notes("0.2.0", CHANGELOG, PROJECT, "https://host/shop/recommender") == (
        "```sh\npip install recommender==0.2.0\n```\n\n### Added\n\n- Filters: "
        "[how](https://host/shop/recommender/blob/v0.2.0/docs/catalogue.md#filters), in [CEL](https://cel.dev).\n"
    )


@pytest.mark.parametrize(
    ("version", "changelog", "says"),
    [("0.3.0", CHANGELOG, "pyproject.toml says 0.2.0"), ("0.2.0", "## Unreleased\n\n- All.\n", "has nothing under")],
)
def test_nothing_is_released_whose_versions_do_not_agree(version: str, changelog: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        notes(version, changelog, PROJECT)
