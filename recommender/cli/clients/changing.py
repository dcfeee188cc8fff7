"""Shared code of the commands that change the catalogue of a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import grpc
import typer

from recommender.cli.clients.ask import secrets_of
from recommender.cli.clients.connecting import meaning
from recommender.cli.lazy import fail
from recommender.client.connection import authorization, options_for
from recommender.edges.address import address_of
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as api_grpc

Host = Annotated[str, typer.Option(help="The server's host name or address.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")]
Timeout = Annotated[float, typer.Option(min=0.001, max=86_400, help="Seconds to wait for each answer.")]
Ca = Annotated[Path | None, typer.Option(help="Authority of the server's certificate; with it, TLS.")]
Certificate = Annotated[Path | None, typer.Option(help="Own certificate, for mutual TLS.")]
Key = Annotated[Path | None, typer.Option(help="Key of the own certificate.")]
TokenFile = Annotated[Path | None, typer.Option(help="File that holds the token to send; its scope is `catalogue`.")]


class Target:
    """Where a server is, and what it is shown. A file at fault ends the process with a sentence."""

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        token_file: Path | None,
    ) -> None:
        self.address = address_of(host, port)
        self.timeout = timeout
        self.credentials, token = secrets_of(ca, certificate, key, None, token_file)
        self.metadata = authorization(token)


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


P = TypeVar("P", bound=_Page)


def pages(ask: Callable[[str], P]) -> Iterator[P]:
    """The pages of a list, each asked for by the token of the one before; the first by an empty one."""
    page = ask("")
    yield page
    while page.next_page_token:
        page = ask(page.next_page_token)
        yield page


@contextmanager
def calling(target: Target) -> Iterator[api_grpc.CatalogueServiceStub]:
    """A stub of the server. A call that fails ends the process with a sentence."""
    options = options_for(target.address)
    opened = (
        grpc.insecure_channel(target.address, options)
        if target.credentials is None
        else grpc.secure_channel(target.address, target.credentials, options)
    )
    with opened as channel:
        try:
            yield api_grpc.CatalogueServiceStub(channel)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                fail(f"{target.address} takes no changes: RECOMMENDER_CATALOGUE_WRITES=true lets it", 1)
            said = meaning(code, details, where="--host and --port", tls=target.credentials is not None)
            fail(f"{target.address}: {said}" if said else f"{target.address} answered {code.name}: {details}", 1)
