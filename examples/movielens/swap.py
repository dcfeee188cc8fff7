"""Bring a second version in under load: swap.py NEXT VERSION [--target HOST:PORT].

NEXT is a folder with an imported model, VERSION the folder that it becomes in the repository which the server follows.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from collections import Counter
from pathlib import Path

import grpc

from recommender.client import Client

CALLERS = 4
ANSWERS = 1000
"""Of the second version, before the callers stop."""
PATIENCE = 120.0


async def main() -> None:
    """Send requests throughout, put the version in place, and end once it has answered often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("next", type=Path)
    parser.add_argument("version", type=Path)
    parser.add_argument("--target", default="localhost:50051")
    given = parser.parse_args()
    answered: Counter[str] = Counter()
    async with Client(given.target) as client:
        first = (await client.recommend(item_keys=["1"], timeout=30)).model_version
        end = time.monotonic() + PATIENCE

        async def ask() -> None:
            while time.monotonic() < end and answered.total() - answered[first] - answered["failed"] < ANSWERS:
                try:
                    answered[(await client.recommend(item_keys=["1", "50"], timeout=30)).model_version] += 1
                except grpc.aio.AioRpcError as error:
                    answered["failed"] += 1
                    print(f"{error.code().name}: {error.details()}")

        await asyncio.gather(asyncio.to_thread(_put, given.next, given.version), *(ask() for _ in range(CALLERS)))
    for version, count in answered.items():
        print(f"{version}: {count:,} answers")
    if answered["failed"] or len(answered) < 2 + ("failed" in answered):
        raise SystemExit("the second version did not take over without a failure")


def _put(source: Path, version: Path) -> None:
    """Copy the folder, its card last: with that it counts as a version."""
    version.mkdir(parents=True)
    files = sorted(source.iterdir(), key=lambda path: path.name == "card.json")
    for file in files:
        shutil.copy(file, version / file.name)


if __name__ == "__main__":
    asyncio.run(main())
