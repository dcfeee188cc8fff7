"""`recommender demo`: a server, 256 requests at once, and their answers."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.table import Table

from recommender.cli.clients.ask import CALL_TIMEOUT, EXAMPLES, print_answers
from recommender.cli.running import load_settings, logged, run
from recommender.client import Client
from recommender.errors import ModelError
from recommender.models.sources.file import find_model
from recommender.models.sources.reference import REFERENCE
from recommender.server.server import Server

_REQUESTS = 256
_SHOWN = 5


def demo() -> None:
    """Start a server, send it concurrent requests, show the answers.

    The server listens on a free port with grpc.aio. Without a model file it serves the reference model.
    """
    here = {"port": 0, "host": "127.0.0.1", "log_level": "warning", "edge": "grpc"}
    settings = load_settings(**here)
    if settings.models.model is None:
        try:
            find_model(settings.models.weights_dir, settings.models.num_recommendations, None)
        except ModelError:
            settings = load_settings(**here, model=REFERENCE)
    out = Console()

    async def main() -> None:
        server = Server(settings)
        await server.start()
        try:
            items = server.model.items or len(EXAMPLES)
            histories = [tuple(id_ % items for id_ in ids) for ids in EXAMPLES]
            histories += [
                tuple((7 * row + 13 * step) % items for step in range(1 + row % 9))
                for row in range(len(EXAMPLES), _REQUESTS)
            ]
            out.print(
                f"Serving [bold]{server.model.label}[/] on port {server.port}; "
                f"sending {len(histories)} requests at once …"
            )
            async with Client(f"127.0.0.1:{server.port}") as connection:
                answers = await asyncio.gather(*(connection.recommend(ids, timeout=CALL_TIMEOUT) for ids in histories))
            print_answers(histories[:_SHOWN], answers[:_SHOWN])
            batches = server.batcher.statistics().batches
            table = Table("batch size", "engine runs", title=f"{len(histories)} requests, {sum(batches.values())} runs")
            for size, count in sorted(batches.items()):
                table.add_row(str(size), str(count))
            out.print(table)
        finally:
            await server.close()

    run(logged(settings, main()))
