"""The public interface as lists: commands, settings, metrics, log events, exit codes.

`python -m tests.public` writes them, a file each, next to this module. They change in the same commit as the changelog.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from recommender.cli.main import app
from recommender.observability.instruments import INSTRUMENTS
from recommender.server.process import ExitCode
from recommender.settings.settings import Settings
from tests.support.paths import ROOT

FOLDER = Path(__file__).parent
_LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def commands() -> Iterator[str]:
    """Each command, and each of its arguments and options with their default."""
    yield from _command(typer.main.get_command(app), ())


def _command(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    name = " ".join(("recommender", *path))
    if hasattr(command, "list_commands"):
        with command.make_context(name, [], resilient_parsing=True) as context:
            for each in sorted(command.list_commands(context)):
                found = command.get_command(context, each)
                if not found.hidden:
                    yield from _command(found, (*path, each))
        return
    yield name
    for parameter in sorted(command.params, key=lambda parameter: (parameter.param_type_name, parameter.name or "")):
        spelled = "/".join((*parameter.opts, *parameter.secondary_opts))
        default = "required" if parameter.required else f"default {parameter.default}"
        yield f"{name}: {parameter.param_type_name} {spelled}, {default}"


def settings() -> Iterator[str]:
    """Each key of the environment with its default, as `recommender config` prints it."""
    for key, value in Settings().environment().items():
        yield f"{key}={value}"


def metrics() -> Iterator[str]:
    """Each metric by both of its names, with kind, unit and attributes."""
    for each in INSTRUMENTS:
        yield f"{each.name} {each.prometheus_name} {each.kind} {each.unit}: {', '.join(each.attributes)}"


def log_events() -> Iterator[str]:
    """Each event that the code logs, with its level and the keys it is logged with."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in (ROOT / "recommender").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            event = _event(node)
            if event is not None:
                (level, name), keys = event
                found.setdefault((name, level), set()).update(keys)
    for (name, level), each in found.items():
        yield f"{name!r} {level}: {', '.join(sorted(each))}".rstrip(": ")


def _event(node: ast.AST) -> tuple[tuple[str, str], list[str]] | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
        return None
    level = node.func.attr.removeprefix("log_")
    first = node.args[0]
    if level not in _LEVELS or not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return None
    return (level, first.value), [keyword.arg or "**" for keyword in node.keywords]


def exit_codes() -> Iterator[str]:
    """Each exit code of `recommender serve`."""
    for code in ExitCode:
        yield f"{code.value} {code.name}"


LISTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "commands.txt": commands,
    "settings.txt": settings,
    "metrics.txt": metrics,
    "log-events.txt": log_events,
    "exit-codes.txt": exit_codes,
}


def text(name: str) -> str:
    """A list as its file holds it."""
    return "".join(f"{line}\n" for line in sorted(LISTS[name]()))
