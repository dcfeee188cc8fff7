"""`recommender health`. Orchestrators run it every few seconds, so it imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import grpc
import typer

from recommender.cli.connecting import meaning
from recommender.cli.lazy import fail, imported
from recommender.edges.address import address_of
from recommender.errors import SettingsError

if TYPE_CHECKING:
    from recommender.settings.settings import Settings

_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_MOST_BYTES = 127


def health(
    address: Annotated[str | None, typer.Option(help="Where to ask; by default RECOMMENDER_HEALTH_PORT here.")] = None,
    name: Annotated[str, typer.Option(help="startup, readiness or liveness.")] = "readiness",
    timeout: Annotated[float, typer.Option(min=0.001, max=86_400, help="Seconds to wait for the answer.")] = 2.0,
) -> None:
    """Ask a server's health port, for probes that run a command; exit code 0 if it is SERVING, else 1."""
    request = _request(name)
    address = address or _configured()
    try:
        with grpc.insecure_channel(address) as channel:
            check: grpc.UnaryUnaryMultiCallable[bytes, str] = channel.unary_unary(
                "/grpc.health.v1.Health/Check", None, _status
            )
            status = check(request, timeout=timeout)
    except grpc.RpcError as error:
        said = meaning(error.code(), error.details(), where="--address") or error.details()
        if error.code() is grpc.StatusCode.NOT_FOUND:
            said = "no such name there; the server's own port has no names, ask at RECOMMENDER_HEALTH_PORT"
        fail(f"{name} of {address}: {error.code().name}: {said}", 1)
    except ValueError as error:
        fail(f"{name} of {address} cannot be asked: {error}", 2)
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
        fail("there is no RECOMMENDER_HEALTH_PORT to ask: set it, or give --address", 2)
    return address_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 (not listened on)


# HealthCheckRequest and HealthCheckResponse have one field each; importing protobuf takes as long as the call.


def _request(name: str) -> bytes:
    """Field 1, the name of the service; a length below 128 is one byte."""
    try:
        encoded = name.encode()
    except UnicodeError:
        fail("--name must be UTF-8 text", 2)
    if len(encoded) > _MOST_BYTES:
        fail(f"--name has {len(encoded)} bytes and may have {_MOST_BYTES}: ask for startup, readiness or liveness", 2)
    return bytes((0x0A, len(encoded))) + encoded


def _status(answer: bytes) -> str:
    """Field 1, the status; 0 where the field is left out."""
    return _STATUSES[answer[1] if answer.startswith(b"\x08") else 0]
