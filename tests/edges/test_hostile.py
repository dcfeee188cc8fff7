"""Hostile messages: a clear status for their sender, and no effect on other callers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.settings.network import Edge
from tests.support.facts import FACTS
from tests.support.paths import WEIGHTS
from tests.support.process import running
from tests.support.serving import AnyServer, served

pytestmark = pytest.mark.both_edges

TIMEOUT = 60.0
METHOD = "/recommend_api.v1.RecommenderService/Recommend"
GOOD = api.RecommendRequest(item_ids=[0]).SerializeToString()
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
Raw = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@pytest.fixture
async def raw(server: AnyServer) -> AsyncIterator[Raw]:
    """A caller that sends raw bytes."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", UNLIMITED) as channel:
        method: Raw = channel.unary_unary(METHOD)
        yield method


async def status(raw: Raw, message: bytes) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await raw(message, timeout=TIMEOUT)
    return refused.value.code(), refused.value.details() or ""


async def unharmed(raw: Raw) -> bool:
    return list(api.RecommendResponse.FromString(await raw(GOOD, timeout=TIMEOUT)).item_ids) == FACTS[0,]


def varint_field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + varint(value)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

HOSTILE: dict[str, tuple[bytes | Callable[[], bytes], grpc.StatusCode]] = {
    "empty body": (b"", INVALID),
    "cut varint": (b"\x08\xff", INVALID),
    "length beyond the end": (b"\x0a\x7f\x01", INVALID),
    "group that never ends": (b"\x0b", INVALID),
    "field number 0": (b"\x00\x01", INVALID),
    "string where a number belongs": (b"\x12\x03abc", INVALID),
    "least int32": (varint_field(1, -(2**31)), INVALID),
    "greatest limit": (GOOD + varint_field(2, 2**31 - 1), INVALID),
    "least limit": (GOOD + varint_field(2, -(2**31)), INVALID),
    "invalid UTF-8 in a key": (b"\x3a\x02\xff\xfe", INVALID),
    "a key of a megabyte": (lambda: api.RecommendRequest(item_keys=["k" * 2**20]).SerializeToString(), INVALID),
    "a million ids": (lambda: api.RecommendRequest(item_ids=range(10**6)).SerializeToString(), INVALID),
    "hundreds of thousands of negative ids": (
        lambda: api.RecommendRequest(item_ids=[-1] * 400_000).SerializeToString(),
        INVALID,
    ),
    "ten million ids": (lambda: api.RecommendRequest(item_ids=range(10**7)).SerializeToString(), EXHAUSTED),
    "a hundred megabytes": (lambda: bytes(100_000_000), EXHAUSTED),
}
"""Large messages are made when they are sent: not in each process that collects the tests."""


@pytest.mark.parametrize(("message", "code"), HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_message_gets_a_clear_status_and_harms_nobody(
    raw: Raw, message: bytes | Callable[[], bytes], code: grpc.StatusCode
) -> None:
    sent = message if isinstance(message, bytes) else message()
    friend = asyncio.create_task(unharmed(raw))
    found, sentence = await status(raw, sent)

    assert found == code
    assert sentence
    assert "Traceback" not in sentence
    assert len(sentence) < 2000
    assert await friend
    assert await unharmed(raw)


async def test_unknown_fields_are_ignored(raw: Raw) -> None:
    later = GOOD + b"\xfa\x3e\x03new" + varint_field(15, 7)

    assert api.RecommendResponse.FromString(await raw(later, timeout=TIMEOUT)).item_ids == FACTS[0,]


async def test_the_greatest_id_is_just_an_unknown_one(raw: Raw) -> None:
    message = api.RecommendRequest(item_ids=[0, 2**31 - 1]).SerializeToString()
    reply = api.RecommendResponse.FromString(await raw(message, timeout=TIMEOUT))

    assert (list(reply.item_ids), list(reply.unknown_item_ids)) == (FACTS[0,], [2**31 - 1])


async def test_a_varint_longer_than_int32_is_what_protobuf_says_it_is(raw: Raw) -> None:
    # The wire format keeps the low 32 bits: a larger number is a request for that item.
    reply = api.RecommendResponse.FromString(await raw(varint_field(1, 2**32), timeout=TIMEOUT))

    assert list(reply.item_ids) == FACTS[0,]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc for the server's memory")
async def test_large_messages_that_are_refused_cost_the_server_no_memory(edge: Edge) -> None:
    message = bytes(50_000_000)
    async with (
        running(settings={"RECOMMENDER_EDGE": edge}) as process,
        grpc.aio.insecure_channel(f"127.0.0.1:{process.port}", UNLIMITED) as channel,
    ):
        method: Raw = channel.unary_unary(METHOD)
        assert await unharmed(method)
        before = process.resident_bytes()
        for _ in range(10):
            assert (await status(method, message))[0] == EXHAUSTED
        # A later answer shows that the last of them was handled and freed.
        assert await unharmed(method)
        after = process.resident_bytes()

    assert after - before < len(message)


@pytest.fixture(scope="module")
def caller(edge: Edge) -> object:
    """A synchronous caller of the reference model, for drawn messages."""
    with served(WEIGHTS / "10_model.onnx", 10, edge) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.binary(max_size=200))
def test_bytes_of_any_kind_are_answered_or_refused_in_a_sentence(caller: grpc.Channel, message: bytes) -> None:
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = caller.unary_unary(METHOD)
    call = method.future(message, timeout=TIMEOUT)

    assert call.code() in {grpc.StatusCode.OK, INVALID}
    assert call.code() is grpc.StatusCode.OK or call.details()
