"""Every command on a page says how it is held true, and names what there is: recipes, commands, options, files."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from recommender.cli.main import app
from tests.support.documents import PAGES, SHELLS, Block, blocks
from tests.support.paths import ROOT
from tests.support.programs import program

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language in SHELLS]
CLASS = re.compile(r"run|ci|long|needs:[a-z0-9.-]+")
LANGUAGES = {*SHELLS, "html", "json", "proto", "python", "text", "toml", "yaml"}
OURS = {"recommender", "just", "uv", "pip", "python", "python3", "grpcurl"}
"""Programs of the project and its environment."""
EVERYWHERE = {"bash", "cat", "cd", "cp", "git", "kill", "mkdir", "mv", "rm", "touch", "wait"}


def named(block: Block) -> str:
    return str(block)


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, "commands are `sh`, output is `text`"
    if block.language in SHELLS:
        classes = {word.partition(":")[0] for word in block.words if CLASS.fullmatch(word)}
        assert len(classes) == 1, "one of run, ci, long, needs:NAME stands after the language"
        assert all(map(CLASS.fullmatch, block.words))
    elif block.language == "python":
        assert block.words == ("run",) or block.words[0].startswith("file:"), "run, or file:NAME"


@pytest.mark.parametrize("block", COMMANDS, ids=named)
def test_its_commands_name_what_there_is(block: Block) -> None:
    assert block.commands
    for command in block.commands:
        check(command, block)


@pytest.mark.parametrize("block", COMMANDS, ids=named)
def test_nothing_comes_after_a_server_that_holds_the_terminal(block: Block) -> None:
    before = [line for line in block.text.strip().splitlines()[:-1] if not line.endswith("\\")]

    assert not [line for line in before if re.search(r"\brecommender serve\b(?!.*&)", line)]


WRONG = {
    "recommender srve": "no command srve",
    "recommender models pull shop": "no command pull",
    "recommender serve --wrkers 4": "--wrkers",
    "recommender token web 90": "90",
    "just tset": "no recipe tset",
    "just bench --rte 5": "--rte",
    "just bench mnay": "bench.load.mnay",
    "python -m bench.peers --ruonds 3": "--ruonds",
    "python -m bench.peer": "bench.peer",
    "python deploy/capacities.py": "deploy/capacities.py",
    "kubectl apply": "needs:kubectl",
    "RECOMMENDER_PORT=1 recommender srve > deploy/none.txt & cat none": "no command srve",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_command_that_is_wrong_is_found(text: str) -> None:
    block = Block(ROOT / "README.md", 1, "sh", ("run",), text)

    with pytest.raises(AssertionError, match=WRONG[text]):
        test_its_commands_name_what_there_is(block)


def check(command: Sequence[str], block: Block) -> None:
    """Raises AssertionError if this cannot be right."""
    name, arguments = Path(command[0]).name, list(command[1:])
    for path in re.findall(r"(?<![\w/.-])(?:bench|deploy|docs|proto|tests|weights)/[\w./-]+", " ".join(command)):
        assert (ROOT / path).exists(), f"{path} is not there"
    if name in CHECKS:
        CHECKS[name](arguments, block)
    elif name not in OURS | EVERYWHERE:
        assert f"needs:{name}" in block.words, f"needs:{name} is missing"


def check_recommender(arguments: list[str], _: Block) -> None:
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="recommender")
    while isinstance(command, typer.core.TyperGroup):
        name = arguments.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command = found
        context = command.context_class(command, parent=context, info_name=name)
    try:
        _, rest, _ = command.make_parser(context).parse_args(arguments)
    except Exception as error:
        raise AssertionError(str(error)) from error
    assert rest == [], f"{rest} is too much"


def check_just(arguments: list[str], block: Block) -> None:
    if not arguments:
        return
    name, *options = arguments
    assert name in recipes(), f"no recipe {name}"
    body = recipes()[name]
    if name == "bench":
        folder = "questions" if options and (ROOT / f"bench/questions/{options[0]}.py").exists() else "load"
        module = f"bench.{folder}.{options.pop(0)}" if options and options[0].isidentifier() else "bench.load"
        check_module(module, options)
    elif module_run := re.search(r"python -m ([\w.]+)", body):
        check_module(module_run[1], options)
    elif ours := re.search(r"\brecommender (\w+)", body):
        check_recommender([ours[1], *options], block)


def check_python(arguments: list[str], _: Block) -> None:
    if arguments[:1] == ["-m"] and arguments[1].startswith("bench"):
        check_module(arguments[1], arguments[2:])


def check_module(name: str, arguments: Sequence[str]) -> None:
    """Whether a module's source has these options: it is not run, for what it imports takes seconds."""
    file = ROOT / name.replace(".", "/")
    path = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
    assert path.exists(), f"no module {name}"
    known = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for option in arguments:
        assert not option.startswith("--") or option.partition("=")[0] in known, f"{name} has no {option}"


def check_uv(arguments: list[str], block: Block) -> None:
    """What `uv run` runs."""
    if arguments[:1] == ["run"]:
        rest = arguments[1:]
        while rest and rest[0].startswith("--"):
            rest = rest[2:] if rest[0] in ("--group", "--extra", "--project", "--with") else rest[1:]
        check(rest, block)


CHECKS: dict[str, Callable[[list[str], Block], None]] = {
    "recommender": check_recommender,
    "just": check_just,
    "python": check_python,
    "uv": check_uv,
}


@cache
def recipes() -> dict[str, str]:
    """The text of every recipe, by name."""
    dumped = subprocess.run(
        [program("just"), "--dump", "--dump-format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {
        name: json.dumps(recipe["body"])
        for name, recipe in json.loads(dumped)["recipes"].items()
        if not recipe["private"]
    }
