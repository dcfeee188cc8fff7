"""Attacks by a client without a token, each as one bounded coroutine over its own connections.

An attack returns its findings in a few words, and holds nothing when it ends. Only `held` keeps its connections open
until it is cancelled, so that the server can be stopped meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.raw import HEADERS, RECOMMEND, Raw, raw

BATCH = "/recommend_api.v1.RecommenderService/BatchRecommend"
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
PATIENCE = 10.0
"""Seconds that an attacker waits for an answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """The ports of a server on this machine; `size` scales every number of an attack, 1.0 is whole."""

    port: int
    metrics: int
    health: int
    size: float = 1.0

    def times(self, number: int) -> int:
        """`number` in this size, at least 1."""
        return max(int(number * self.size), 1)


Attack: TypeAlias = Callable[[Target], Awaitable[str]]


async def silence(target: Target) -> str:
    """Plaintext connections that say nothing."""
    count = target.times(80)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(raw(target.port, greeted=False)) for _ in range(count)]
        ended = await asyncio.gather(*(_within(connection.ended()) for connection in silent))
    return f"{sum(map(bool, ended))} of {count} were closed"


async def unread_watches(target: Target) -> str:
    """`Watch` calls whose connection accepts not one byte of a reply."""
    async with AsyncExitStack() as stack:
        ports = (target.port, target.health)
        for port in ports:
            connection = await _closed_window(stack, port)
            for _ in range(target.times(50)):
                await connection.call(WATCH, b"")
        await asyncio.sleep(target.size)
    return f"{target.times(50)} a port"


async def many_watches(target: Target) -> str:
    """Watches of health, as many as the server takes."""
    count, told = target.times(10_000), Counter[str]()
    each = 100
    async with AsyncExitStack() as stack:
        for _ in range(-(-count // each)):
            connection = await stack.enter_async_context(raw(target.port))
            for _ in range(min(each, count)):
                try:
                    await connection.call(WATCH, b"")
                except h2.exceptions.ProtocolError:
                    told["held back"] += 1
                else:
                    told["asked"] += 1
        await asyncio.sleep(target.size)
    return _told(told)


async def unfinished_uploads(target: Target) -> str:
    """Messages of 4 MiB that want one byte."""
    told = Counter[str]()
    async with raw(target.port) as connection:
        for _ in range(target.times(100)):
            told[await _upload(connection, (4 << 20) - 64)] += 1
    return _told(told)


async def unread_replies(target: Target) -> str:
    """Batch calls without a token and with unread replies."""
    message = _batch(rows=1_000, limit=1_000)
    told = Counter[str]()
    async with AsyncExitStack() as stack:
        connection = await _closed_window(stack, target.port)
        for _ in range(target.times(100)):
            told[await _sent(connection.call(BATCH, message))] += 1
        await asyncio.sleep(target.size)
    return _told(told)


async def huge_calls(target: Target) -> str:
    """Batch calls of 4 MB without a token, one after the other."""
    message = _batch(rows=1_000, history=1_000)
    told = Counter[str]()
    for _ in range(target.times(10)):
        async with raw(target.port) as connection:
            stream = await connection.call(BATCH)
            told[await _answer(connection, stream, send=message)] += 1
    return _told(told)


async def huge_names(target: Target) -> str:
    """Health of a service whose name takes 4 MB."""
    name = b"n" * (4_000_000)
    length = bytes(
        (0x80 | len(name) & 0x7F, 0x80 | len(name) >> 7 & 0x7F, 0x80 | len(name) >> 14 & 0x7F, len(name) >> 21)
    )
    told = Counter[str]()
    for _ in range(target.times(10)):
        async with raw(target.port) as connection:
            stream = await connection.call(CHECK)
            told[await _answer(connection, stream, send=b"\x0a" + length + name)] += 1
    return _told(told)


async def rapid_resets(target: Target) -> str:
    """Calls that are reset as soon as they are opened."""
    count, encoder = target.times(20_000), Encoder()
    async with raw(target.port) as connection:
        with suppress(OSError):
            for stream in range(1, 2 * count, 2):
                head = HeadersFrame(stream, encoder.encode(HEADERS), flags=["END_HEADERS"])
                await connection.send(head.serialize() + RstStreamFrame(stream, error_code=8).serialize())
    return f"{count} sent"


async def abandoned_calls(target: Target) -> str:
    """Calls that are abandoned in the same write that opens them, and one of each hundred that waits for its answer."""
    told = Counter[str]()
    body = b"\0\0\0\0\0"
    async with raw(target.port) as connection:
        for _ in range(target.times(100)):
            for _ in range(100):
                stream = connection.http2.get_next_available_stream_id()
                connection.http2.send_headers(stream, HEADERS)
                connection.http2.send_data(stream, body, end_stream=True)
                connection.http2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            told[await _answer(connection, await connection.call(CHECK, b""))] += 1
    return _told(told)


async def unknown_methods(target: Target) -> str:
    """Calls of unknown methods, each with another name."""
    told = Counter[str]()
    async with raw(target.port) as connection:
        for number in range(target.times(2_000)):
            told[await _answer(connection, await connection.call(f"/no.Service/Method{number}", b""))] += 1
    return _told(told)


async def endless_headers(target: Target) -> str:
    """Headers that continue in frame after frame."""
    told = Counter[str]()
    piece = ContinuationFrame(1, Encoder().encode([("x-more", "y" * 1_000)])).serialize()
    for _ in range(target.times(10)):
        async with raw(target.port) as connection:
            await connection.send(HeadersFrame(1, Encoder().encode(HEADERS)).serialize())
            try:
                for _ in range(5_000):
                    await connection.send(piece)
            except OSError:
                told["stopped"] += 1
            else:
                told["sent whole"] += 1
    return _told(told)


async def packed_headers(target: Target) -> str:
    """Headers of a few bytes that unpack to megabytes: one large value, named again and again."""
    told = Counter[str]()
    for _ in range(target.times(20)):
        async with raw(target.port) as connection:
            encoder = Encoder()
            first = encoder.encode([*HEADERS, ("x-large", "y" * 4_000)])
            again = encoder.encode([("x-large", "y" * 4_000)])
            block = first + again * (15_000 // len(again))
            with suppress(OSError):
                await connection.send(HeadersFrame(1, block, flags=["END_HEADERS"]).serialize())
                told["sent"] += 1
    return _told(told)


async def floods(target: Target) -> str:
    """Pings and settings that want an answer each, without a pause."""
    frames = PingFrame(0, b"12345678").serialize() * 50 + SettingsFrame(0, {3: 100}).serialize() * 50
    async with raw(target.port) as connection:
        sent = 0
        with suppress(OSError):
            for _ in range(target.times(400)):
                await connection.send(frames)
                sent += 100
    return f"{sent} frames taken"


async def nonsense(target: Target) -> str:
    """Bytes that are not HTTP/2, and calls with malformed messages."""
    told = Counter[str]()
    for junk in (b"\0" * 4_096, b"\xff" * 4_096, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"a" * 512):
        async with raw(target.port, greeted=False) as connection:
            with suppress(OSError):
                await connection.send(junk)
    for path in (RECOMMEND, BATCH, CHECK, WATCH, REFLECTION, "/", "/a/b", "/" + "../" * 50, "/%00/x"):
        # An empty message is valid for a watch, which stays open.
        for message in (b"" if path != WATCH else b"\xff", b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f"):
            async with raw(target.port) as connection:
                stream = await connection.call(path, message)
                told[await _answer(connection, stream)] += 1
    return _told(told)


async def guesses(target: Target) -> str:
    """Tokens that are guessed."""
    told = Counter[str]()
    async with raw(target.port) as connection:
        for guess in range(target.times(2_000)):
            stream = connection.http2.get_next_available_stream_id()
            token = ("authorization", f"Bearer rcm_{guess:040}")
            connection.http2.send_headers(stream, (*HEADERS, token), end_stream=True)
            await connection.flush()
            told[await _answer(connection, stream)] += 1
    return _told(told)


async def slow_scrapes(target: Target) -> str:
    """Connections to the metrics' port that send a byte of a request now and then."""
    count, ended = target.times(2_000), 0
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(count):
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", target.metrics), 1.0)
            except (OSError, TimeoutError):
                break
            writers.append(writer)
        for byte in b"GET /metrics HTT":
            for writer in writers:
                writer.write(bytes((byte,)))
            await asyncio.sleep(0.2 * target.size)
        ended = sum(writer.transport.is_closing() for writer in writers)
    finally:
        for writer in writers:
            writer.close()
    return f"{len(writers)} opened, {ended} of them closed by the server"


async def held(target: Target) -> str:
    """`Watch` calls, uploads and calls that all stay open and unread."""
    async with AsyncExitStack() as stack:
        for port in (target.port, target.health):
            connection = await _closed_window(stack, port)
            for _ in range(target.times(20)):
                await connection.call(WATCH, b"")
        connection = await stack.enter_async_context(raw(target.port))
        for path in (RECOMMEND, BATCH, CHECK, REFLECTION):
            await connection.call(path)
        await asyncio.Event().wait()
    return ""


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        attack.__name__.replace("_", " "): attack
        for attack in (
            silence, unread_watches, many_watches, unfinished_uploads, unread_replies, huge_calls, huge_names,
            rapid_resets, abandoned_calls, unknown_methods, endless_headers, packed_headers, floods, nonsense, guesses,
            slow_scrapes,
        )
    }
)  # fmt: skip


async def _closed_window(stack: AsyncExitStack, port: int) -> Raw:
    """A connection that takes no byte of any reply."""
    connection = await stack.enter_async_context(raw(port, greeted=False))
    connection.http2.initiate_connection()
    connection.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    await connection.flush()
    return connection


async def _upload(connection: Raw, size: int) -> str:
    """Open a call and send all of its message but one byte, or as much as the server takes."""
    stream = await connection.call()
    with suppress(h2.exceptions.ProtocolError):
        connection.http2.send_data(stream, b"\0" + (size + 1).to_bytes(4, "big"))
        left = size
        while left > 0:
            some = min(connection.http2.local_flow_control_window(stream), 16_384, left)
            if some == 0:
                break
            connection.http2.send_data(stream, bytes(some))
            left -= some
    return await _answer(connection, stream, patience=0.2)


async def _answer(connection: Raw, stream: int, *, send: bytes | None = None, patience: float = PATIENCE) -> str:
    """The status that a call ends with, or what else becomes of it; `send` is its message, as far as it is taken."""
    try:
        async with asyncio.timeout(patience):
            if send is not None:
                whole = await _send_whole(connection, stream, b"\0" + len(send).to_bytes(4, "big") + send)
                if not whole:
                    return "refused before its end"
            return f"status {await connection.status(stream)}"
    except TimeoutError:
        return "no answer"
    except (EOFError, OSError, KeyError, h2.exceptions.ProtocolError):
        return "cut off"


async def _send_whole(connection: Raw, stream: int, body: bytes) -> bool:
    """Send a body as the server's window opens; False if the server ends the call before."""
    while body:
        some = min(connection.http2.local_flow_control_window(stream), 16_384, len(body))
        if some:
            connection.http2.send_data(stream, body[:some], end_stream=some == len(body))
            body = body[some:]
            await connection.flush()
        else:
            event = await connection.until(
                h2.events.WindowUpdated, h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated
            )
            if not isinstance(event, h2.events.WindowUpdated):
                return False
    return True


async def _sent(call: Awaitable[int]) -> str:
    try:
        await call
    except (OSError, h2.exceptions.ProtocolError):
        return "not taken"
    return "sent"


async def _within(wait: Awaitable[bool]) -> bool:
    try:
        async with asyncio.timeout(PATIENCE + 10):
            return await wait
    except (TimeoutError, OSError):
        return False


def _batch(rows: int, *, limit: int = 10, history: int = 1) -> bytes:
    request = api.RecommendRequest(item_ids=range(1, history + 1), limit=limit)
    return api.BatchRecommendRequest(requests=[request] * rows).SerializeToString()


def _told(told: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in told.most_common())
