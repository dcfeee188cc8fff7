"""The group that imports commands when they are called, and `fail`; imports nothing but Typer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from recommender.server.entry import discard_output
from recommender.settings.masking import masked

if TYPE_CHECKING:
    from typer._click import Command, HelpFormatter


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command: where it is, as `module:attribute`, and its line in the help. Without a line it is hidden."""

    path: str
    summary: str = ""

    def load(self, name: str) -> Command:
        """Import the command: a function, or a Typer with subcommands."""
        found = imported(self.path)
        if not isinstance(found, typer.Typer):
            alone = new_typer()
            alone.command(name, hidden=not self.summary)(found)
            found = alone
        return typer.main.get_command(found)


def imported(path: str) -> Callable[..., None]:
    """Import what `module:attribute` names."""
    module, _, attribute = path.partition(":")
    found: Callable[..., None] = getattr(import_module(module), attribute)
    return found


def new_typer(text: str | None = None, group: type[TyperGroup] | None = None) -> typer.Typer:
    """A Typer with this program's manners: plain help, `-h`, no completion, tracebacks as Python prints them."""
    return typer.Typer(
        help=text,
        cls=group,
        no_args_is_help=text is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        add_completion=False,
        # The rich help imports a Markdown parser and a highlighter: 0.4 s of CPU.
        rich_markup_mode=None,
    )


def group_of(table: Mapping[str, Lazy]) -> type[TyperGroup]:
    """The class of a group that has the commands of the table."""

    class LazyGroup(TyperGroup):
        def get_command(self, ctx: object, cmd_name: str) -> Command | None:  # noqa: ARG002
            if cmd_name in table:
                return table[cmd_name].load(cmd_name)
            # Typer suggests near names of these.
            self.commands.update({name: TyperCommand(name) for name in table if table[name].summary})
            return None

        def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002
            return list(table)

        def format_commands(self, ctx: object, formatter: HelpFormatter) -> None:  # noqa: ARG002
            with formatter.section("Commands"):
                formatter.write_dl([(name, lazy.summary) for name, lazy in table.items() if lazy.summary])

    return LazyGroup


def fail(message: str, code: int) -> NoReturn:
    """Exit with a sentence on standard error, with names and passwords in addresses masked.

    The exit code is the same if nothing reads it.
    """
    try:
        typer.echo(f"recommender: {masked(message)}", err=True)
    except OSError:
        discard_output(2)
    raise typer.Exit(code)
