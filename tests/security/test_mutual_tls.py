"""Mutual TLS under attack: handshakes that do not end, and floods of them."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from recommender.client import Client
from tests.support.certificates import Authority
from tests.support.facts import FACTS
from tests.support.raw import raw
from tests.support.serving import AnyServer, Serve

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
"""The beginning of a ClientHello of 512 bytes."""
OPEN = 60


async def known(server: AnyServer, authority: Authority) -> list[int]:
    """What a client of the authority is answered."""
    async with Client(f"127.0.0.1:{server.port}", credentials=authority.client_credentials()) as client:
        return list((await client.recommend([0], timeout=TIMEOUT)).item_ids)


def settings(folder: Path, authority: Authority) -> dict[str, object]:
    return {**authority.write_server(folder), "tls_client_ca": authority.write_pem(folder / "clients.pem")}


@pytest.mark.parametrize("said", [b"", HALF_A_HELLO], ids=["nothing", "half a hello"])
async def test_handshakes_that_do_not_end_are_closed_and_hold_up_nobody(
    serve: Serve, tmp_path: Path, said: bytes
) -> None:
    authority = Authority()
    async with (
        serve(**settings(tmp_path, authority), handshake_timeout_ms=1000) as server,
        AsyncExitStack() as stack,
    ):
        connections = [await stack.enter_async_context(raw(server.port, greeted=False)) for _ in range(OPEN)]
        for connection in connections:
            await connection.send(said)
        assert await known(server, authority) == FACTS[0,]
        closed = await asyncio.gather(*(connection.ended() for connection in connections))

    assert all(closed)


async def test_a_flood_of_handshakes_without_a_certificate_lets_others_in(serve: Serve, tmp_path: Path) -> None:
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    tried, flooded = 0, asyncio.Event()

    async def flood(port: int) -> None:
        nonlocal tried
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.close()
            except OSError:
                pass
            tried += 1
            if tried == OPEN:
                flooded.set()

    async with serve(**settings(tmp_path, authority)) as server:
        floods = [asyncio.create_task(flood(server.port)) for _ in range(8)]
        await asyncio.wait_for(flooded.wait(), TIMEOUT)
        answers = [await known(server, authority) for _ in range(3)]
        for each in floods:
            each.cancel()
        await asyncio.wait(floods)

    assert answers == [FACTS[0,]] * 3


@pytest.mark.system("openssl")
async def test_a_client_that_renegotiates_loses_its_connection(serve: Serve, tmp_path: Path) -> None:
    authority = Authority()
    async with serve(**authority.write_server(tmp_path)) as server:
        client = await asyncio.create_subprocess_exec(
            "openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2", "-alpn", "h2",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert client.stdin is not None
        assert client.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            await client.stdout.readuntil(b"Verify return code")
            client.stdin.write(b"R\n")
            said = await client.stdout.read()
            await client.wait()

        assert b"RENEGOTIATING" in said
        assert await known(server, authority) == FACTS[0,]
