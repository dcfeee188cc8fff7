"""Send requests on one open stream and take answers as they get ready: stream.py [HOST:PORT]."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from recommender import Client, Recommendations
from recommender.client import Request


async def requests() -> AsyncIterator[Request]:
    """One request for each of a hundred users; the second one is at fault."""
    for user in range(100):
        yield Request(item_ids=[user if user != 1 else -1], limit=1)


async def main() -> None:
    """Print each answer under the number of its request."""
    target = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
    async with Client(target) as client:
        async for place, outcome in client.stream(requests(), timeout=5.0):
            if isinstance(outcome, Recommendations):
                print(f"request {place}: {outcome.item_ids[0]}")
            else:
                print(f"request {place}: {outcome.code.name}: {outcome.message}")


if __name__ == "__main__":
    asyncio.run(main())
