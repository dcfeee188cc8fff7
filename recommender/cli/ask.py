"""`recommender client` and `recommender demo`: ask a server, and show its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.table import Table

from recommender.cli.lazy import fail
from recommender.client import Client, Recommendations

EXAMPLES: tuple[tuple[int, ...], ...] = ((1, 2, 3, 4), (0,), (9999, 999, 99))
"""Histories that the reference model knows."""
CALL_TIMEOUT = 10.0


def client(
    host: Annotated[str, typer.Option(help="Where the server is.")] = "localhost",
    port: Annotated[int, typer.Option(help="The server's port.")] = 50051,
    items: Annotated[str | None, typer.Option(help="A history: item ids, oldest first, as 1,2,3,4.")] = None,
    limit: Annotated[int, typer.Option(help="How many recommendations; 0 leaves it to the server.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each answer.")] = CALL_TIMEOUT,
    ca: Annotated[Path | None, typer.Option(help="Authority of the server's certificate; with it, TLS.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Own certificate, for mutual TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key of the own certificate.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token to send.")] = None,
) -> None:
    """Ask a running server for recommendations.

    Without --items, for a few examples.
    """
    histories = (_history(items),) if items is not None else EXAMPLES
    try:
        credentials = None
        if ca is not None:
            own = [path.read_bytes() if path is not None else None for path in (key, certificate)]
            credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *own)
        token = token_file.read_text(encoding="utf-8").strip() if token_file is not None else None
    except OSError as error:
        fail(f"{error.filename} cannot be read: {error.strerror}", 2)

    async def ask() -> list[Recommendations]:
        async with Client(f"{host}:{port}", credentials=credentials, token=token) as connection:
            return [await connection.recommend(ids, limit=limit, timeout=timeout) for ids in histories]

    try:
        answers = asyncio.run(ask())
    except grpc.aio.AioRpcError as error:
        fail(f"{host}:{port} answered {error.code().name}: {error.details()}", 1)
    print_answers(histories, answers)


def print_answers(histories: Sequence[tuple[int, ...]], answers: Sequence[Recommendations]) -> None:
    """Print a table of histories with their recommendations."""
    table = Table("history", "recommendations, best first, with scores", show_lines=True)
    for history, answer in zip(histories, answers, strict=True):
        ids = [str(item) for item in answer.item_ids]
        scores = [f"{score:.2f}" for score in answer.scores]
        width = max(map(len, (*ids, *scores)), default=0)
        lines = [" ".join(cell.rjust(width) for cell in row) for row in (ids, scores) if row]
        table.add_row(" ".join(map(str, history)), "\n".join(lines))
    table.caption = f"model {answers[0].model_version}"
    Console().print(table)


def _history(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers such as 1,2,3,4", param_hint="--items"
        ) from None
