"""Each limit, exceeded: the status of the caller, and no effect on others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import h2.errors
import h2.events
import pytest

from recommender.api.metadata import PUSHBACK_KEY, SERVICE_NAME
from recommender.client import Client, Request
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.facts import FACTS
from tests.support.process import running
from tests.support.raw import HEADERS, raw
from tests.support.serving import Serve

TIMEOUT = 30.0
FLAGS, END_HEADERS = 4, 4
"""The byte of a frame's head that has its flags, and one of them."""
GOOD = api.RecommendRequest(item_ids=[0]).SerializeToString()
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def refusal(port: int, message: bytes, **call: object) -> grpc.aio.AioRpcError:
    """How a call of these bytes fails."""
    options = (("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 10_000_000))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Recommend")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(message, timeout=TIMEOUT, **call)  # type: ignore[arg-type]
    return refused.value


async def answered(port: int) -> bool:
    async with Client(f"127.0.0.1:{port}") as client:
        return list((await client.recommend([0], timeout=TIMEOUT)).item_ids) == FACTS[0,]


async def test_a_message_over_the_limit_is_refused(serve: Serve) -> None:
    async with serve(max_message_bytes=1024) as server:
        refused = await refusal(server.port, bytes(1025))

        assert refused.code() == EXHAUSTED
        assert await answered(server.port)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_small_message_that_unpacks_to_a_huge_one_is_refused_and_takes_no_memory(
    compression: grpc.Compression,
) -> None:
    bomb = bytes(300_000_000)  # some 300 kB on the wire
    async with running() as server:
        before = server.resident_bytes()
        refused = await refusal(server.port, bomb, compression=compression)
        grown = server.resident_bytes() - before

        assert refused.code() == EXHAUSTED
        assert grown < 50_000_000
        assert await answered(server.port)


async def test_an_honest_compressed_message_is_answered(serve: Serve) -> None:
    async with serve() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Recommend")
        reply = await method(GOOD, timeout=TIMEOUT, compression=grpc.Compression.Gzip)

    assert list(api.RecommendResponse.FromString(reply).item_ids) == FACTS[0,]


async def test_metadata_over_the_limit_is_refused(serve: Serve) -> None:
    async with serve(max_metadata_bytes=2048) as server:
        refused = await refusal(server.port, GOOD, metadata=(("x-much", "x" * 2048),))

        assert refused.code() == EXHAUSTED
        assert await answered(server.port)


async def test_more_requests_in_a_batch_call_than_it_may_have_are_refused(serve: Serve) -> None:
    async with serve(max_batch_requests=2) as server, Client(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.recommend_many([Request(item_ids=[0])] * 3, timeout=TIMEOUT)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_history_longer_than_it_may_be_is_refused(serve: Serve) -> None:
    async with serve(max_history=3) as server:
        refused = await refusal(server.port, api.RecommendRequest(item_ids=[0] * 4).SerializeToString())

    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_more_open_streams_than_may_be_are_refused_with_a_time(serve: Serve) -> None:
    async with serve(max_streams=1) as server, Client(f"127.0.0.1:{server.port}") as client:
        release = asyncio.Event()

        async def held() -> AsyncIterator[Request]:
            yield Request(item_ids=[0])
            await release.wait()

        first = client.stream(held(), timeout=TIMEOUT)
        await anext(first)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(client.stream(held(), timeout=TIMEOUT))
        release.set()
        with pytest.raises(StopAsyncIteration):
            await anext(first)
        await anext(client.stream(held(), timeout=TIMEOUT))

    assert refused.value.code() == EXHAUSTED
    assert dict(refused.value.trailing_metadata())[PUSHBACK_KEY] == "1000"


async def test_more_calls_on_a_connection_than_may_be_open_are_refused_on_it(serve: Serve) -> None:
    async with serve(max_connection_calls=2) as server, raw(server.port) as caller:
        await caller.until(h2.events.RemoteSettingsChanged)
        assert caller.http2.remote_settings.max_concurrent_streams == 2
        # A caller that does not care: what it sends is sent all the same.
        caller.http2.remote_settings.max_concurrent_streams = 100
        caller.http2.remote_settings.acknowledge()
        for _ in range(3):
            caller.http2.send_headers(caller.http2.get_next_available_stream_id(), HEADERS)
        await caller.flush()
        reset = await caller.until(h2.events.StreamReset)

        assert isinstance(reset, h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (5, h2.errors.ErrorCodes.REFUSED_STREAM)
        assert await answered(server.port)


async def test_a_connection_that_is_old_is_asked_to_go_and_its_client_misses_nothing(serve: Serve) -> None:
    async with serve(max_connection_age_ms=200, max_connection_age_grace_ms=10_000) as server:
        async with raw(server.port) as caller, Client(f"127.0.0.1:{server.port}") as client:
            gone = asyncio.create_task(caller.goaway())
            while not gone.done():
                await client.recommend([0], timeout=TIMEOUT)
            for _ in range(20):
                await client.recommend([0], timeout=TIMEOUT)

        assert gone.result() == (h2.errors.ErrorCodes.NO_ERROR, b"max_age")


async def test_a_call_that_outlasts_its_connection_s_grace_is_ended(serve: Serve) -> None:
    async with (
        serve(max_connection_age_ms=100, max_connection_age_grace_ms=100) as server,
        Client(f"127.0.0.1:{server.port}") as client,
    ):

        async def held() -> AsyncIterator[Request]:
            yield Request(item_ids=[0])
            await asyncio.Event().wait()

        stream = client.stream(held(), timeout=TIMEOUT)
        await anext(stream)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(stream)

    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_connection_without_a_call_is_closed(serve: Serve) -> None:
    async with serve(max_connection_idle_ms=100) as server, raw(server.port) as caller:
        _, reason = await caller.goaway()

        assert reason == b"connection idle"


@pytest.mark.both_edges
@pytest.mark.parametrize("said", [b"", b"PRI * HT"], ids=["nothing", "half a greeting"])
async def test_who_connects_and_says_too_little_is_dropped(serve: Serve, said: bytes) -> None:
    async with serve(handshake_timeout_ms=300) as server, raw(server.port, greeted=False) as caller:
        await caller.send(said)
        assert await caller.ended()
        assert await answered(server.port)


async def test_a_client_that_does_not_acknowledge_its_limits_is_dropped(serve: Serve) -> None:
    async with serve(handshake_timeout_ms=300) as server, raw(server.port) as caller:
        assert await caller.ended()
        assert await answered(server.port)


@pytest.mark.parametrize("edge", ["envoy"], scope="session")
async def test_a_call_whose_headers_never_end_is_ended(serve: Serve) -> None:
    async with serve(handshake_timeout_ms=300) as server, raw(server.port) as caller:
        await caller.until(h2.events.RemoteSettingsChanged)
        await caller.flush()
        caller.http2.send_headers(1, HEADERS)
        frame = bytearray(caller.http2.data_to_send())
        frame[FLAGS] &= ~END_HEADERS
        await caller.send(bytes(frame))
        refused = await caller.until(h2.events.StreamEnded)

        assert isinstance(refused, h2.events.StreamEnded)
        assert await answered(server.port)


async def test_callers_who_open_calls_and_never_finish_them_hold_up_nobody(serve: Serve) -> None:
    async with serve(max_connection_calls=100) as server, raw(server.port) as caller:
        await caller.until(h2.events.RemoteSettingsChanged)
        for _ in range(100):
            stream = caller.http2.get_next_available_stream_id()
            caller.http2.send_headers(stream, HEADERS)
            caller.http2.send_data(stream, b"\x00\x00\x00\x00\x09\x08")
        await caller.flush()

        assert await answered(server.port)
