"""`recommender items upsert`, `remove` and `new`: items that a model lacks, added to a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recommender.catalogue.attributes.opening import rows_reader
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
from recommender.cli.lazy import fail
from recommender.cli.running import loaded
from recommender.client.changes import NewItem, removals, upserts
from recommender.errors import StartError
from recommender.recommend_api.v1 import catalogue_api_pb2 as api

if TYPE_CHECKING:
    from recommender.catalogue.attributes.rows import NewRow

_STATES = {
    api.NEW_ITEM_STATE_RANKED: "ranked",
    api.NEW_ITEM_STATE_WAITING: "waiting",
    api.NEW_ITEM_STATE_LEFT_BEHIND: "left behind",
    api.NEW_ITEM_STATE_IN_CATALOGUE: "in the catalogue",
}


def upsert(
    file: Annotated[Path, typer.Argument(help="Parquet or JSONL: key, vector, bias if any, and attributes.")],
    *,
    model: Annotated[str, typer.Option(help="The version that the vectors were made for, name@version.")],
    host: Host = "localhost",
    port: Port = 50051,
    timeout: Timeout = CALL_TIMEOUT,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Add the items of a file to a version of a model: they are recommended from a second later on."""
    added = replaced = total = 0
    waiting = False
    target = Target(host, port, timeout, ca, certificate, key, token_file)
    read = loaded(rows_reader)
    with calling(target) as stub:
        for request in upserts(model, _items(read(file))):
            answer = stub.UpsertItems(request, timeout=timeout, metadata=target.metadata)
            added, replaced, total = added + answer.added, replaced + answer.replaced, answer.total
            waiting |= answer.waiting
    typer.echo(f"{added} added, {replaced} replaced; there are {total} new items now")
    if waiting:
        typer.echo(f"{model} is not served: its items wait", err=True)


def remove(
    items: Annotated[list[str] | None, typer.Argument(metavar="KEY …", help="Keys of new items.")] = None,
    *,
    left_behind: Annotated[
        bool, typer.Option("--left-behind", help="All that versions left behind, or have themselves by now.")
    ] = False,
    model: Annotated[str, typer.Option(help="Only those of this version, name@version.")] = "",
    host: Host = "localhost",
    port: Port = 50051,
    timeout: Timeout = CALL_TIMEOUT,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Remove new items that `upsert` has added."""
    if bool(items) == left_behind:
        fail("name new items, or give --left-behind", 2)
    calls = [api.RemoveItemsRequest(left_behind=True, model=model)] if left_behind else removals(items or [], model)
    removed = total = 0
    target = Target(host, port, timeout, ca, certificate, key, token_file)
    with calling(target) as stub:
        for request in calls:
            answer = stub.RemoveItems(request, timeout=timeout, metadata=target.metadata)
            removed, total = removed + answer.removed, answer.total
    typer.echo(f"{removed} removed; there are {total} new items now")


def list_new(
    *,
    host: Host = "localhost",
    port: Port = 50051,
    timeout: Timeout = CALL_TIMEOUT,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """List the new items, a line each: state, name@version and key with tabs between. Their numbers go to stderr."""
    target = Target(host, port, timeout, ca, certificate, key, token_file)
    with calling(target) as stub:

        def ask(token: str) -> api.ListNewItemsResponse:
            request = api.ListNewItemsRequest(page_token=token)
            return stub.ListNewItems(request, timeout=timeout, metadata=target.metadata)

        first: api.ListNewItemsResponse | None = None
        for page in pages(ask):
            first = first or page
            for item in page.items:
                typer.echo(f"{_STATES.get(item.state, '')}\t{item.model}\t{item.key}")
    if first is not None:
        counts = ", ".join(f"{each.items} {_STATES.get(each.state, '')}" for each in first.counts)
        typer.echo(f"{first.total} new items, {first.limit} at most{': ' if counts else ''}{counts}", err=True)


def _items(rows: Iterator[NewRow]) -> Iterator[NewItem]:
    """The items of a file; one that is wrong ends the process with a sentence."""
    while True:
        try:
            row = next(rows, None)
        except StartError as error:
            fail(str(error), 2)
        if row is None:
            return
        yield NewItem(*row)
