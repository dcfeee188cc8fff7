"""MkDocs hooks: pages from outside docs/, links to source files, the list of decisions."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
}
"""Pages in the repository's root, and what they are called on the site."""
DECISIONS = "decisions/index.md"
_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_LOADED = re.compile(r"<(?:script|img|iframe|link rel=.?stylesheet.?)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+")
_log = logging.getLogger("mkdocs.hooks")


def on_config(config: MkDocsConfig) -> None:
    """Add the decisions to the navigation, and the repository's address if pyproject.toml has one."""
    for entry in config.nav or ():
        if "Decisions" in entry:
            entry["Decisions"] += [f"decisions/{page.name}" for page in _decisions()]
    if not config.repo_url:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        config.repo_url = project.get("urls", {}).get("Repository", "")


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Add the pages that are not in docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    titles = [(page.name, page.read_text(encoding="utf-8").partition("\n")[0].strip("# ")) for page in _decisions()]
    listed = "".join(f"- [{title}]({name})\n" for name, title in titles)
    content = f"# Decisions\n\nEach page says what was decided, why, and what was given up.\n\n{listed}"
    files.append(File.generated(config, DECISIONS, content=content))


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 (MkDocs')
    """Make links and code blocks what MkDocs reads."""
    return "".join(
        re.sub(r"^( *```\w+)[^\n]*", r"\1", part) if part.lstrip().startswith("```") else _linked(part, page, config)
        for part in _parts(markdown)
    )


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> None:  # noqa: ARG001 (MkDocs')
    """Warn of what a page loads from elsewhere."""
    for loaded in _LOADED.findall(output):
        _log.warning("%s loads from another host: %s", page.file.src_uri, loaded)


def _decisions() -> list[Path]:
    return sorted((ROOT / "docs/decisions").glob("*.md"))


def _parts(markdown: str) -> Iterator[str]:
    """The text and its code blocks, in order."""
    end = 0
    for block in _FENCED.finditer(markdown):
        yield markdown[end : block.start()]
        yield block[0]
        end = block.end()
    yield markdown[end:]


def _linked(text: str, page: Page, config: MkDocsConfig) -> str:
    """The text with links to pages as they are on the site, and links to source files into the repository."""
    here = page.file.src_uri
    folder = ROOT if here in OUTSIDE.values() else (ROOT / "docs" / here).parent

    def link(found: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / found["target"]))
        if not path.exists() or not path.is_relative_to(ROOT):
            return found[0]  # MkDocs warns of it
        name = path.relative_to(ROOT).as_posix()
        if name in OUTSIDE:
            on_site = OUTSIDE[name]
        elif name == "docs/decisions":
            on_site = DECISIONS
        elif path.is_file() and name.startswith("docs/"):
            on_site = name.removeprefix("docs/")
        elif config.repo_url:
            kind = "tree" if path.is_dir() else "blob"
            return f"{found['picture']}[{found['text']}]({config.repo_url}/{kind}/main/{name}{found['anchor'] or ''})"
        else:
            return f"{found['text']} (`{name}`)"
        target = posixpath.relpath(on_site, posixpath.dirname(here) or ".")
        return f"{found['picture']}[{found['text']}]({target}{found['anchor'] or ''})"

    return _LINK.sub(link, text)
