"""Fenced blocks of the pages, and the shell commands in them.

The words after a block's language say how it is held true: ```` ```sh run ```` is run by the suite, `ci` by
`.ci/run`, `long` takes minutes, and `needs:NAME` needs a program or a service that the project does not install.
`file:NAME` saves the block under that name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SHELLS = ("sh", "bash", "console")
_FENCED = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_BETWEEN = re.compile(r"[;&|]+")
_REDIRECTIONS = (">", ">>", "<", ">&")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_KEYWORDS = ("do", "then", "else", "!", "exec")
_NO_COMMANDS = ("for", "done", "fi", "export")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, its language, the words after it, and its content."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without variables that are set for it and files that it is redirected to."""
        return [command for line in self.text.replace("\\\n", " ").splitlines() for command in _commands(line)]

    @property
    def serves(self) -> bool:
        """Whether it ends with a server in the foreground."""
        return bool(self.commands) and self.commands[-1][:2] == ["recommender", "serve"]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    found = []
    for fenced in _FENCED.finditer(content):
        language, *words = fenced["info"].split() or [""]
        line = content.count("\n", 0, fenced.start()) + 1
        text = re.sub(rf"^{fenced['indent']}", "", fenced["text"], flags=re.MULTILINE)
        found.append(Block(page, line, language, tuple(words), text))
    return found


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for token in [*lexer, ";"]:
        if _BETWEEN.fullmatch(token):
            if words := _bare(command):
                yield words
            command = []
        else:
            command.append(token)


def _bare(command: Sequence[str]) -> list[str]:
    """The program and its arguments; nothing for a loop's own words."""
    words: list[str] = []
    rest = iter(command)
    for word in rest:
        if word in _REDIRECTIONS:
            if words and words[-1] in ("1", "2"):
                words.pop()
            next(rest)
        elif words or not (word in _KEYWORDS or _ASSIGNMENT.fullmatch(word)):
            words.append(word)
    return [] if words and words[0] in _NO_COMMANDS else words
