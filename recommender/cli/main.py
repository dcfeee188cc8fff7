"""The commands there are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import recommender
from recommender.cli.lazy import Lazy, group_of, new_typer
from recommender.server.entry import prepare_environment

COMMANDS = {
    "serve": Lazy("recommender.cli.serve:serve", "Serve a model until SIGTERM, SIGINT or SIGHUP."),
    "client": Lazy("recommender.cli.clients.ask:app", "Ask a running server for recommendations."),
    "demo": Lazy("recommender.cli.demo:demo", "Start a server, send it concurrent requests, show the answers."),
    "export": Lazy("recommender.cli.export:export", "Export a torch network as a model file with its card."),
    "import": Lazy("recommender.cli.importing:import_", "Import a model that another library trained."),
    "score": Lazy("recommender.cli.scoring:score", "Score files of histories without a server."),
    "items": Lazy(
        "recommender.cli.clients.items:app", "Hide items of a running server, show them, add new ones, list both."
    ),
    "models": Lazy("recommender.cli.models:app", "List, show, verify, publish and promote the versions of models."),
    "profile": Lazy("recommender.cli.profile:profile", "Measure a model on this machine and recommend settings."),
    "top": Lazy("recommender.cli.clients.top:top", "Watch a running server: calls, latency, batches, load."),
    "health": Lazy(
        "recommender.cli.clients.health:health", "Ask a server's health port, for probes that run a command."
    ),
    "token": Lazy("recommender.cli.token:token", "Make a bearer token."),
    "config": Lazy("recommender.cli.config:config", "Print the effective settings."),
    "worker": Lazy("recommender.cli.worker:worker"),
}

app = new_typer("A gRPC service that turns a user's history of items into the top-K next items.", group_of(COMMANDS))


def _print_version(wanted: bool) -> None:  # noqa: FBT001 (Typer's callbacks take the value of the option)
    if wanted:
        typer.echo(f"recommender {recommender.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the exit code is the process's."""
    prepare_environment()
    try:
        app(prog_name="recommender")
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"recommender: {error.filename}: {error.strerror}", err=True)
        sys.exit(2)
