"""`recommender config`: the effective settings, and the pages made from them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from recommender.cli.running import load_settings
from recommender.settings import pages


def config(
    *,
    template: Annotated[bool, typer.Option("--template", help="Print .env.template instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md instead.")] = False,
) -> None:
    """Print the effective settings, secrets masked."""
    if template:
        sys.stdout.write(pages.template())
    elif markdown:
        sys.stdout.write(pages.markdown())
    else:
        for key, value in load_settings().shown().items():
            sys.stdout.write(f"{key}={value}\n")
