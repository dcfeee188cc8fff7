"""Callers without a token, and callers that send or read too little: what they may hold, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path

import grpc
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes

from recommender.client import Client
from recommender.edges.guests import MOST_CALLS
from recommender.edges.health import Health
from recommender.edges.held import CONNECTION_BYTES, PROCESS_BYTES, Held
from recommender.edges.method import Messages, Streaming
from recommender.errors import QuotaError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.models import table, write_model
from tests.support.raw import HEADERS, RECOMMEND, raw
from tests.support.serving import AnyServer, Serve

both_edges = pytest.mark.both_edges

TIMEOUT = 30.0
TOKEN = "rcm_of_a_friend"  # noqa: S105 (no secret)
BATCH = "/recommend_api.v1.RecommenderService/BatchRecommend"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
BEGUN = b"\x00\x00\x40\x00\x00"
"""The length of a message of 4 MiB that never arrives."""


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[friend]\nsha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]\n', encoding="ascii")
    return path


@both_edges
async def test_a_call_without_a_token_ends_before_its_message_comes(serve: Serve, tokens: Path) -> None:
    async with serve(tokens_file=tokens) as server, raw(server.port) as stranger:
        stream = await stranger.call()
        stranger.http2.send_data(stream, BEGUN)
        await stranger.flush()

        assert await stranger.status(stream) == grpc.StatusCode.UNAUTHENTICATED.value[0]


@both_edges
async def test_a_message_that_does_not_come_ends_the_call_at_its_deadline(serve: Serve) -> None:
    async with serve(default_timeout_ms=200) as server, raw(server.port) as slow:
        stream = await slow.call()
        slow.http2.send_data(stream, BEGUN)
        await slow.flush()

        assert await slow.status(stream) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@both_edges
async def test_of_too_many_slow_messages_on_a_connection_only_the_oldest_end(server: AnyServer) -> None:
    async with raw(server.port) as slow, raw(server.port) as other:
        await slow.until(h2.events.RemoteSettingsChanged)
        patient = ("grpc-timeout", "30S")
        good = api.RecommendRequest(item_ids=[0]).SerializeToString()
        spared = await other.call(RECOMMEND, None, patient)
        other.http2.send_data(spared, b"\0" + len(good).to_bytes(4, "big"))
        await other.flush()
        streams = [await slow.call(RECOMMEND, None, patient) for _ in range(17)]
        for stream in streams:
            slow.http2.send_data(stream, BEGUN)
        await slow.flush()
        assert await slow.status(streams[0]) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        other.http2.send_data(spared, good, end_stream=True)
        await other.flush()

        assert await other.status(spared) == grpc.StatusCode.OK.value[0]


@both_edges
async def test_a_call_that_ends_without_a_message_is_told_so(server: AnyServer) -> None:
    async with raw(server.port) as caller:
        stream = await caller.call()
        caller.http2.end_stream(stream)
        await caller.flush()

        assert await caller.status(stream) == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@both_edges
async def test_few_calls_without_a_token_are_open_on_a_connection_and_others_are_not_hurt(server: AnyServer) -> None:
    async with raw(server.port) as stranger, raw(server.port) as friend:
        await stranger.until(h2.events.RemoteSettingsChanged)
        for number in range(MOST_CALLS):
            await stranger.call(WATCH, b"", ("x-forwarded-for", f"10.0.0.{number}"))
        refused = await stranger.call(WATCH, b"", ("x-forwarded-for", "10.0.1.1"))
        assert await stranger.status(refused) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        check = await friend.call(CHECK, b"")

        assert await friend.status(check) == grpc.StatusCode.OK.value[0]


@both_edges
async def test_more_connections_than_may_be_are_closed_at_once(serve: Serve) -> None:
    async with serve(max_connections=3) as server, contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(raw(server.port)) for _ in range(6)]
        closed = asyncio.gather(*(each.ended() for each in opened[3:]))
        await asyncio.wait_for(closed, TIMEOUT)


@both_edges
async def test_calls_that_are_abandoned_at_once_keep_no_others_out(serve: Serve) -> None:
    message = api.RecommendRequest(item_ids=[0]).SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    async with serve(max_connection_calls=50) as server, raw(server.port) as caller:
        await caller.until(h2.events.RemoteSettingsChanged)
        await caller.flush()
        for _ in range(5):
            # One write: the server reads of many calls that were abandoned before it can end a single one of them.
            for _ in range(200):
                stream = caller.http2.get_next_available_stream_id()
                caller.http2.send_headers(stream, HEADERS)
                caller.http2.send_data(stream, body, end_stream=True)
                caller.http2.reset_stream(stream, ErrorCodes.CANCEL)
            assert await caller.status(await caller.call(message=message)) == grpc.StatusCode.OK.value[0]


async def test_watches_are_bounded_over_all_connections() -> None:
    health = Health(("",))
    (watch,) = (method for method in health.methods() if isinstance(method, Streaming))

    async def request() -> Messages:
        yield b""

    async def send(*_: object) -> None:
        """Take it."""

    async with asyncio.timeout(TIMEOUT):
        watching = [asyncio.ensure_future(watch.serve(request(), send)) for _ in range(1025)]
        done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        health.end_watches()
        await asyncio.wait(watching)

    assert [type(each.exception()) for each in done] == [QuotaError]


@both_edges
async def test_a_caller_that_does_not_read_a_large_reply_is_cut_off_at_the_deadline(serve: Serve) -> None:
    rows = [api.RecommendRequest(item_ids=[0], limit=1000)] * 200  # some megabytes
    message = api.BatchRecommendRequest(requests=rows).SerializeToString()
    async with (
        serve(default_timeout_ms=2000) as server,
        raw(server.port) as stranger,
        raw(server.port) as friend,
    ):
        stranger.http2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await stranger.call(BATCH, message)
        assert await stranger.ended()
        check = await friend.call(CHECK, b"")

        assert await friend.status(check) == grpc.StatusCode.OK.value[0]


def test_what_a_connection_holds_is_bounded_and_counted_until_it_is_released() -> None:
    held = Held()
    held.hold("a:1", 2 * CONNECTION_BYTES)  # a connection has room for one reply, always
    with pytest.raises(QuotaError):
        held.hold("a:1", 1)
    held.release("a:1", 2 * CONNECTION_BYTES)
    with held.holding("a:1", CONNECTION_BYTES), pytest.raises(QuotaError):
        held.hold("a:1", 1)
    held.hold("a:1", CONNECTION_BYTES)


def test_an_address_that_holds_all_it_can_leaves_room_for_others() -> None:
    held = Held()
    for port in range(PROCESS_BYTES // 2 // CONNECTION_BYTES):
        held.hold(f"[::1]:{port}", CONNECTION_BYTES)
    with pytest.raises(QuotaError):
        held.hold("[::1]:9", 1)
    for size in (2, 4, 8):  # each other one finds half of what is left
        held.hold(f"{size}:1", PROCESS_BYTES // 2 // size)

    with pytest.raises(QuotaError):
        held.hold("another:1", PROCESS_BYTES // 8)


@both_edges
async def test_large_messages_of_a_connection_that_wait_for_their_answers_are_bounded(
    serve: Serve, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "5_model.onnx", table(), burn=30)  # so that messages come faster than answers go
    row = api.BatchRecommendRequest(requests=[api.RecommendRequest(item_ids=[1])]).SerializeToString()
    message = row + 2 * (b"\xfa\x01" + b"\xff\xff\x6f" + bytes(0x1BFFFF))  # two unknown fields of 1.8 MB

    async def code(channel: grpc.aio.Channel) -> grpc.StatusCode:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(BATCH)
        return await ask(message, timeout=TIMEOUT).code()

    async with (
        serve(model=model, num_recommendations=5, max_batch_size=1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", (("grpc.enable_retries", 0),)) as channel,
        Client(f"127.0.0.1:{server.port}") as friend,
    ):
        greedy = [asyncio.create_task(code(channel)) for _ in range(2 * CONNECTION_BYTES // len(message))]
        await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
        await friend.recommend([1], timeout=TIMEOUT)
        codes = set(await asyncio.gather(*greedy))

    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
