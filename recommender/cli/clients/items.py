"""`recommender items`: hide items of a running server, show them again, and list what is hidden; add new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from recommender.cli.clients.ask import CALL_TIMEOUT
from recommender.cli.clients.changing import (
    Ca,
    Certificate,
    Host,
    Key,
    Port,
    Target,
    Timeout,
    TokenFile,
    calling,
    pages,
)
from recommender.cli.clients.new_items import list_new, remove, upsert
from recommender.cli.clients.tables import check
from recommender.cli.lazy import fail, new_typer
from recommender.recommend_api.v1 import catalogue_api_pb2 as api

app = new_typer("Hide items of a running server, show them, add new ones, list both. Check a table of items.")
app.command()(check)
app.command()(upsert)
app.command()(remove)
app.command("new")(list_new)

_AT_ONCE = 1_000
_SHOWN = 10

_Items = Annotated[list[str] | None, typer.Argument(metavar="KEY …", help="Keys of items; ids with --model.")]
_From = Annotated[Path | None, typer.Option("--from", help="File of more of them, one a line; - is standard input.")]
_Model = Annotated[str, typer.Option(help="Take them for ids of this version, name@version.")]


@app.command()
def hide(
    items: _Items = None,
    *,
    file: _From = None,
    model: _Model = "",
    host: Host = "localhost",
    port: Port = 50051,
    timeout: Timeout = CALL_TIMEOUT,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Hide items: they are in no answer from a second later on."""
    unknown: list[str] = []
    target = Target(host, port, timeout, ca, certificate, key, token_file)
    with calling(target) as stub:

        def send(keys: Sequence[str], ids: Sequence[int]) -> api.HideItemsResponse:
            request = api.HideItemsRequest(item_keys=keys, item_ids=ids, model=model)
            answer = stub.HideItems(request, timeout=timeout, metadata=target.metadata)
            unknown.extend(answer.unknown_item_keys)
            return answer

        _change(_named(items, file), send, "hidden", by_id=bool(model))
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        typer.echo(f"no version has {', '.join(unknown[:_SHOWN])}{more}", err=True)


@app.command()
def show(
    items: _Items = None,
    *,
    file: _From = None,
    model: _Model = "",
    host: Host = "localhost",
    port: Port = 50051,
    timeout: Timeout = CALL_TIMEOUT,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Show items again that `hide` has hidden."""
    target = Target(host, port, timeout, ca, certificate, key, token_file)
    with calling(target) as stub:

        def send(keys: Sequence[str], ids: Sequence[int]) -> api.ShowItemsResponse:
            request = api.ShowItemsRequest(item_keys=keys, item_ids=ids, model=model)
            return stub.ShowItems(request, timeout=timeout, metadata=target.metadata)

        _change(_named(items, file), send, "shown", by_id=bool(model))


@app.command("list")
def list_hidden(
    *,
    host: Host = "localhost",
    port: Port = 50051,
    timeout: Timeout = CALL_TIMEOUT,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """List the items that calls have hidden, a line each: a key, or name@version and an id with a tab between."""
    target = Target(host, port, timeout, ca, certificate, key, token_file)
    with calling(target) as stub:

        def ask(token: str) -> api.ListHiddenItemsResponse:
            request = api.ListHiddenItemsRequest(page_token=token)
            return stub.ListHiddenItems(request, timeout=timeout, metadata=target.metadata)

        for page in pages(ask):
            for item in page.items:
                typer.echo(f"{item.model}\t{item.item_id}" if item.model else item.item_key)


def _change(
    items: Sequence[str],
    send: Callable[[Sequence[str], Sequence[int]], api.HideItemsResponse | api.ShowItemsResponse],
    done: str,
    *,
    by_id: bool,
) -> None:
    """Send keys, or ids, as many at a time as a call may have, and say what was `done`."""
    changed = hidden = 0
    for part in _parts(items):
        answer = send((), _ids(part)) if by_id else send(part, ())
        changed, hidden = changed + answer.changed, answer.hidden
    typer.echo(f"{changed} {done}; {hidden} are hidden by calls now")


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
            fail(f"{word!r} is not an item id; without --model it is a key", 2)
    return [int(word) for word in words]
