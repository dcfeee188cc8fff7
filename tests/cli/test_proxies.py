"""Calls to this machine although `http_proxy` is set, as companies do."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator

import pytest

from recommender.client import Client, SyncClient
from recommender.observability.scraping import scrape
from recommender.observability.workers import WorkerMetrics
from recommender.server.entry import prepare_environment
from tests.support.facts import FACTS
from tests.support.process import PATIENCE, running
from tests.support.serving import ServeHere

TIMEOUT = 30.0


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A proxy that every variable names; it takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(TIMEOUT)
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield silent


async def health(*words: str, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "recommender", "health", *words,
        env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, out.decode()


@pytest.mark.usefixtures("proxy")
async def test_clients_and_scrapes_reach_a_server_on_this_machine(serve: ServeHere) -> None:
    async with serve(metrics_port=0) as server:
        for host in ("localhost", "127.0.0.1"):
            async with Client(f"{host}:{server.port}") as client:
                answer = await client.recommend([0], timeout=TIMEOUT)
            with SyncClient(f"{host}:{server.port}") as sync_client:
                also = await asyncio.to_thread(sync_client.recommend, [0], timeout=TIMEOUT)
            assert list(answer.item_ids) == list(also.item_ids) == FACTS[0,]
        scraped = await asyncio.to_thread(scrape, f"http://127.0.0.1:{server.metrics_port}/metrics")
        up, *_ = await asyncio.to_thread(WorkerMetrics(lambda: {0: server.metrics_port}, dict).collect)

    assert scraped.sum("process_uptime_seconds") > 0
    assert [sample.value for sample in up.samples] == [1.0]


async def test_a_call_to_another_machine_goes_through_the_proxy(proxy: socket.socket) -> None:
    def first_line() -> bytes:
        connection, _ = proxy.accept()
        with connection:
            return connection.recv(1024).partition(b"\r\n")[0]

    async with Client("shop.invalid:50051") as client:
        calling = asyncio.create_task(client.recommend([0], timeout=TIMEOUT))
        assert await asyncio.to_thread(first_line) == b"CONNECT shop.invalid:50051 HTTP/1.1"
        calling.cancel()


@pytest.mark.usefixtures("proxy")
async def test_a_probe_reaches_the_health_port_of_this_machine() -> None:
    async with running(settings={"RECOMMENDER_HEALTH_PORT": "0"}) as server:
        port = next(event["port"] for event in server.log if event["event"] == "probes")
        asked = {"RECOMMENDER_HEALTH_PORT": str(port), "RECOMMENDER_HOST": "127.0.0.1"}
        told = [
            await health(**asked),
            await health("--timeout=30", **asked),  # by Typer and the settings
            await health("--address", f"localhost:{port}"),
        ]

    assert told == [(0, "readiness: SERVING\n")] * 3


@pytest.mark.parametrize(
    ("variables", "exceptions"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "shop"}, "shop,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "shop"}, "shop,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
@pytest.mark.usefixtures("proxy")
def test_libraries_are_told_to_use_no_proxy_to_this_machine(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], exceptions: str
) -> None:
    for key, value in {**variables, "no_grpc_proxy": "cart", "GRPC_VERBOSITY": "", "ORT_DISABLE_TELEMETRY": ""}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("no_proxy", os.environ.get("no_proxy", ""))  # and puts it back
    for _ in range(2):
        prepare_environment()

    assert os.environ["no_proxy"] == exceptions
    assert os.environ["no_grpc_proxy"] == "cart,localhost,127.0.0.1,::1"  # noqa: SIM112 (as gRPC spells it)
