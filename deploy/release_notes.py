"""Print the changelog of one version for a release page; fails if the versions do not agree.

python deploy/release_notes.py 0.2.0
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(version: str, changelog: str, project: str, repository: str = "") -> str:
    """How to install `version`, and what the changelog says of it; links lead into `repository`, a URL, at its tag.

    Raises ValueError if the version is not the project's, or if the changelog has nothing about it.
    """
    stated = tomllib.loads(project)["project"]
    if stated["version"] != version:
        raise ValueError(f"pyproject.toml says {stated['version']} and the release {version}: set one of them right")
    found = re.search(rf"^## \[?{re.escape(version)}\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ValueError(f"CHANGELOG.md has nothing under '## {version}': rename what stands under Unreleased")
    text = found[1].strip()
    if repository:
        text = re.sub(r"\]\((?![a-z]+:|#)", f"]({repository}/blob/v{version}/", text)
    return f"```sh\npip install {stated['name']}=={version}\n```\n\n{text}\n"


if __name__ == "__main__":
    server, name = (os.environ.get(f"GITHUB_{part}", "") for part in ("SERVER_URL", "REPOSITORY"))
    try:
        sys.stdout.write(
            notes(
                sys.argv[1],
                (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
                (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
                f"{server}/{name}" if name else "",
            )
        )
    except ValueError as error:
        sys.exit(f"release: {error}")
