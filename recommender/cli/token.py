"""`recommender token`: make a bearer token."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from recommender.security.access import digest_of, new_token


def token(
    name: Annotated[str, typer.Argument(help="Who will use it, as logs and metrics shall say.")],
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; by default it never does.")] = None,
) -> None:
    """Make a bearer token.

    The token goes to standard output, once; its table for the tokens file goes to standard error.
    """
    made = new_token()
    table = [f"[{json.dumps(name)}]", f'sha256 = ["{digest_of(made).hex()}"]']
    if days is not None:
        table.append(f"expires = {datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}")
    typer.echo("# For RECOMMENDER_TOKENS_FILE:\n" + "\n".join(table), err=True)
    typer.echo(made)
