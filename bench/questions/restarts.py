"""Effect of restarts and deaths on callers behind Envoy, and how long a server is missing.

Three servers, the committed configuration of Envoy, and steady callers that never retry. Each server is stopped with
SIGTERM and started again, then each is killed. `just bench restarts`
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.balanced import Envoy, Fleet, Load, envoy, fleet, load


async def restart(servers: Fleet, proxy: Envoy, port: int, number: signal.Signals) -> tuple[float, float]:
    """Seconds until Envoy has noticed that a server is gone, and from its end until it gets calls again."""
    everyone = set(servers.ports)
    began = time.monotonic()
    stopping = asyncio.create_task(servers.stop(port, number))
    await proxy.until_healthy(everyone - {port})
    noticed = time.monotonic() - began
    await stopping
    ended = time.monotonic()
    await servers.start(port)
    await proxy.until_healthy(everyone)
    return noticed, time.monotonic() - ended


async def main(rounds: int) -> None:
    shown = Table("signal", "restarts", "calls", "failed", "slowest call, ms", "noticed after, s", "back after, s")
    with tempfile.TemporaryDirectory() as folder:
        async with fleet() as servers, envoy(servers.ports, Path(folder)) as proxy:
            for number in (signal.SIGTERM, signal.SIGKILL):
                async with load(f"127.0.0.1:{proxy.port}") as seen:
                    each = [
                        await restart(servers, proxy, port, number) for _ in range(rounds) for port in servers.ports
                    ]
                shown.add_row(*row(number, seen, each))
    Console().print(shown)


def row(number: signal.Signals, seen: Load, each: list[tuple[float, float]]) -> list[str]:
    noticed, back = zip(*each, strict=True)
    spans = [f"{min(span):.1f} to {max(span):.1f}" for span in (noticed, back)]
    total = seen.outcomes.total()
    return [number.name, str(len(each)), f"{total:,}", str(seen.failed), f"{seen.slowest * 1e3:.0f}", *spans]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    asyncio.run(main(parser.parse_args().rounds))
