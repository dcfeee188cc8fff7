"""`recommender items check`: look at a table of items before a server is given it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recommender.catalogue.attributes.opening import reader
from recommender.cli.running import loaded


def check(
    file: Annotated[Path, typer.Argument(help="The table: a .parquet, .csv or .jsonl file.")],
    *,
    for_card: Annotated[
        bool, typer.Option("--for-card", help="Take a table by id too, as the card of a model version may list.")
    ] = False,
) -> None:
    """Check a table of items: print what it holds, or what is wrong with it."""
    table = loaded(lambda: reader(of_version=for_card)(file))
    typer.echo(f"{file}: {len(table):,} items, {table.nbytes / 1e6:.1f} MB in memory, sha256 {table.digest[:12]}")
    for name, column in table.columns.items():
        known = int(column.present.sum())
        typer.echo(f"  {name}: {column.kind}, missing for {len(table) - known:,}")
