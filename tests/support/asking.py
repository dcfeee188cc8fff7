"""Run `recommender client` in this process, with typed words."""

from __future__ import annotations

import asyncio

from typer.testing import CliRunner, Result

from recommender.cli.main import app
from tests.support.serving import AnyServer


async def typed(*words: str) -> Result:
    """What a command says; at most once at a time, since it borrows the process's standard output."""
    return await asyncio.to_thread(CliRunner().invoke, app, [*words], env={"COLUMNS": "100"})


async def asked(server: AnyServer, *words: str) -> Result:
    """What `recommender client` says of a server."""
    return await typed("client", "--host", "127.0.0.1", "--port", str(server.port), *words)
