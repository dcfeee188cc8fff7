"""Ask for many users at once on an event loop; the server answers them in batches: many.py [HOST:PORT]."""

from __future__ import annotations

import asyncio
import sys

import grpc

from recommender import Client, Recommendations


async def main() -> None:
    """Print the best item for each of a hundred users."""
    target = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
    async with Client(target) as client:
        calls = (client.recommend([user], limit=1, timeout=5.0) for user in range(100))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for user, outcome in enumerate(outcomes):
        if isinstance(outcome, Recommendations):
            print(f"user {user}: {outcome.item_ids[0]}")
        elif isinstance(outcome, grpc.aio.AioRpcError):
            print(f"user {user}: {outcome.code().name}: {outcome.details()}")
        else:
            raise outcome


if __name__ == "__main__":
    asyncio.run(main())
