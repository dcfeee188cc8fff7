"""`recommender health`, where its words or the settings need a parser; see `connecting.probe` for the plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from recommender.cli.clients.connecting import (
    LEAST_TIMEOUT,
    MOST_TIMEOUT,
    NAME,
    TIMEOUT,
    HealthError,
    ask_health,
    health_address,
    health_request,
)
from recommender.cli.lazy import fail, imported
from recommender.errors import SettingsError

if TYPE_CHECKING:
    from recommender.settings.settings import Settings


def health(
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The health port; by default RECOMMENDER_HEALTH_PORT here.")
    ] = None,
    name: Annotated[str, typer.Option(help="startup, readiness or liveness.")] = NAME,
    timeout: Annotated[
        float, typer.Option(min=LEAST_TIMEOUT, max=MOST_TIMEOUT, help="Seconds to wait for the answer.")
    ] = TIMEOUT,
) -> None:
    """Ask a server's health port, for probes that run a command; exit code 0 if it is SERVING, else 1."""
    try:
        health_request(name)  # report an invalid name before invalid settings
        status = ask_health(address or _configured(), name, timeout, here=address is None)
    except HealthError as error:
        fail(str(error), error.code)
    typer.echo(f"{name}: {status}")
    raise typer.Exit(status != "SERVING")


def _configured() -> str:
    """The address of the health port that the settings name."""
    settings_class = cast("type[Settings]", imported("recommender.settings.settings:Settings"))
    try:
        settings = settings_class.load()
    except SettingsError as error:
        fail(str(error), 2)
    host, port = settings.network.host, settings.operations.health_port
    if not port:
        fail("no health port is configured: set RECOMMENDER_HEALTH_PORT, or give --address HOST:PORT", 2)
    return health_address(host, port)
