"""The changelog of one version, for a release page; nothing is released whose versions do not agree.

python deploy/release_notes.py 0.2.0
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(version: str, changelog: str, project: str) -> str:
    """The part of the changelog about `version`, which must be the project's; raises ValueError and says why."""
    stated = tomllib.loads(project)["project"]["version"]
    if stated != version:
        raise ValueError(f"pyproject.toml says {stated} and the release {version}: set one of them right")
    found = re.search(rf"^## \[?{re.escape(version)}\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ValueError(f"CHANGELOG.md has nothing under '## {version}': rename what stands under Unreleased")
    return found[1].strip() + "\n"


if __name__ == "__main__":
    try:
        sys.stdout.write(
            notes(
                sys.argv[1],
                (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
                (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
            )
        )
    except ValueError as error:
        sys.exit(f"release: {error}")
