"""`recommender items`: hide items of a running server, show them again, and list what is hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import grpc
import typer

from recommender.cli.clients.ask import CALL_TIMEOUT, secrets_of
from recommender.cli.clients.connecting import meaning
from recommender.cli.clients.tables import check
from recommender.cli.lazy import fail, new_typer
from recommender.client.connection import authorization, options_for
from recommender.edges.address import address_of
from recommender.recommend_api.v1 import catalogue_api_pb2 as api
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as api_grpc

app = new_typer("Hide items of a running server, and show them again. List what is hidden, and check a table of items.")
app.command()(check)

_AT_ONCE = 1_000
_SHOWN = 10

_Host = Annotated[str, typer.Option(help="Where the server is.")]
_Port = Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")]
_Timeout = Annotated[float, typer.Option(min=0.001, max=86_400, help="Seconds to wait for each answer.")]
_Ca = Annotated[Path | None, typer.Option(help="Authority of the server's certificate; with it, TLS.")]
_Certificate = Annotated[Path | None, typer.Option(help="Own certificate, for mutual TLS.")]
_Key = Annotated[Path | None, typer.Option(help="Key of the own certificate.")]
_TokenFile = Annotated[Path | None, typer.Option(help="File that holds the token to send; its scope is `catalogue`.")]
_Items = Annotated[list[str] | None, typer.Argument(metavar="KEY …", help="Keys of items; ids with --model.")]
_From = Annotated[Path | None, typer.Option("--from", help="File of more of them, one a line; - is standard input.")]
_Model = Annotated[str, typer.Option(help="Take them for ids of this version, name@version.")]


@app.command()
def hide(
    items: _Items = None,
    *,
    file: _From = None,
    model: _Model = "",
    host: _Host = "localhost",
    port: _Port = 50051,
    timeout: _Timeout = CALL_TIMEOUT,
    ca: _Ca = None,
    certificate: _Certificate = None,
    key: _Key = None,
    token_file: _TokenFile = None,
) -> None:
    """Hide items: nobody gets them from a second later on."""
    changed = hidden = 0
    unknown: list[str] = []
    target = _Target(host, port, timeout, ca, certificate, key, token_file)
    with _calling(target) as stub:
        for part in _parts(_named(items, file)):
            if model:
                request = api.HideItemsRequest(item_ids=_ids(part), model=model)
            else:
                request = api.HideItemsRequest(item_keys=part)
            answer = stub.HideItems(request, timeout=timeout, metadata=target.metadata)
            changed, hidden = changed + answer.changed, answer.hidden
            unknown += answer.unknown_item_keys
    typer.echo(f"{changed} hidden; {hidden} are hidden by calls now")
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        typer.echo(f"no version has {', '.join(unknown[:_SHOWN])}{more}", err=True)


@app.command()
def show(
    items: _Items = None,
    *,
    file: _From = None,
    model: _Model = "",
    host: _Host = "localhost",
    port: _Port = 50051,
    timeout: _Timeout = CALL_TIMEOUT,
    ca: _Ca = None,
    certificate: _Certificate = None,
    key: _Key = None,
    token_file: _TokenFile = None,
) -> None:
    """Show items again that `hide` has hidden."""
    changed = hidden = 0
    target = _Target(host, port, timeout, ca, certificate, key, token_file)
    with _calling(target) as stub:
        for part in _parts(_named(items, file)):
            if model:
                request = api.ShowItemsRequest(item_ids=_ids(part), model=model)
            else:
                request = api.ShowItemsRequest(item_keys=part)
            answer = stub.ShowItems(request, timeout=timeout, metadata=target.metadata)
            changed, hidden = changed + answer.changed, answer.hidden
    typer.echo(f"{changed} shown; {hidden} are hidden by calls now")


@app.command("list")
def list_hidden(
    *,
    host: _Host = "localhost",
    port: _Port = 50051,
    timeout: _Timeout = CALL_TIMEOUT,
    ca: _Ca = None,
    certificate: _Certificate = None,
    key: _Key = None,
    token_file: _TokenFile = None,
) -> None:
    """List the items that calls have hidden, a line each: a key, or name@version and an id with a tab between."""
    target = _Target(host, port, timeout, ca, certificate, key, token_file)
    with _calling(target) as stub:
        page = ""
        while True:
            request = api.ListHiddenItemsRequest(page_token=page)
            answer = stub.ListHiddenItems(request, timeout=timeout, metadata=target.metadata)
            for item in answer.items:
                typer.echo(f"{item.model}\t{item.item_id}" if item.model else item.item_key)
            page = answer.next_page_token
            if not page:
                return


class _Target:
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


@contextmanager
def _calling(target: _Target) -> Iterator[api_grpc.CatalogueServiceStub]:
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


def _named(items: Sequence[str] | None, file: Path | None) -> list[str]:
    """The items on the command line and those of a file."""
    named = list(items or ())
    if file is not None:
        try:
            text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except OSError as error:
            fail(f"{error.filename} cannot be read: {error.strerror}", 2)
        except UnicodeDecodeError:
            fail(f"{file} is not UTF-8 text", 2)
        named += [line for line in text.splitlines() if line]
    if not named:
        fail("name items, or a file of them with --from", 2)
    return named


def _parts(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many at a time as a call may have."""
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _ids(words: Sequence[str]) -> list[int]:
    for word in words:
        if not (word.isascii() and word.isdecimal() and int(word) < 1 << 31):
            fail(f"{word!r} is no item id; without --model it is a key", 2)
    return [int(word) for word in words]
