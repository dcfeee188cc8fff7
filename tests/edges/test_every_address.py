"""One meaning of `0.0.0.0` and `::` on every port: all addresses of this machine, IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import socket

import pytest

from recommender.errors import StartError
from recommender.server.supervisor import Supervisor
from recommender.settings.settings import Settings
from tests.support.pages import read
from tests.support.probes import probe
from tests.support.serving import Serve

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0


async def test_calls_and_scrapes_come_by_ipv4_and_ipv6(serve: Serve) -> None:
    async with serve(host="0.0.0.0", plaintext=True, metrics_port=0) as server:  # noqa: S104
        told = [await probe(f"{here}:{server.port}", "", TIMEOUT) for here in ("127.0.0.1", "[::1]")]
        pages = [
            await asyncio.to_thread(read, f"http://{here}:{server.metrics_port}/metrics")
            for here in ("127.0.0.1", "[::1]")
        ]

    assert told == ["SERVING", "SERVING"]
    assert all("process_uptime_seconds" in page for page in pages)


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
async def test_a_port_that_is_taken_on_one_address_stops_the_start_of_workers(taken: str) -> None:
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.create_server((taken, 0), family=family) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(StartError, match="cannot listen on"):
            await Supervisor(Settings(host="0.0.0.0", plaintext=True, port=port, workers=1)).start()  # noqa: S104
