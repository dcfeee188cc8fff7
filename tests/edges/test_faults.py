"""Callers that break the rules of the wire: one table of statuses for both edges, and no harm to the connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grpc
import h2.events
import pytest
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from recommender.api.metadata import SERVICE_NAME
from recommender.edges.envoy.framing import framed
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.raw import HEADERS, raw
from tests.support.serving import AnyServer

pytestmark = pytest.mark.both_edges

TIMEOUT = 30.0
MALFORMED = b"\x08\xff"
GOOD = framed(api.RecommendRequest(item_ids=[0]).SerializeToString())
RECOMMEND = f"/{SERVICE_NAME}/Recommend"
STREAM = f"/{SERVICE_NAME}/StreamRecommend"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
OK, INVALID, INTERNAL = code_pb2.OK, code_pb2.INVALID_ARGUMENT, code_pb2.INTERNAL
Header = tuple[str, str]


class Fault(NamedTuple):
    """A call on the wire; without a body its headers end it."""

    status: int
    more: Sequence[Header] = ()
    body: bytes | None = GOOD
    path: str = RECOMMEND


def header(name: str, value: str, status: int) -> Fault:
    return Fault(status, [(name, value)])


FAULTS = {
    "101 entries of metadata": Fault(OK, [(f"x-{number}", "v") for number in range(101)]),
    "more metadata than may be": header("x-much", "v" * 20_000, code_pb2.RESOURCE_EXHAUSTED),
    "far more metadata than may be": header("x-much", "~" * 40_000, code_pb2.RESOURCE_EXHAUSTED),
    "a malformed message": Fault(INVALID, body=framed(MALFORMED)),
    "a malformed message of a stream": Fault(INVALID, body=framed(MALFORMED), path=STREAM),
    "a malformed message of health": Fault(INVALID, body=framed(MALFORMED), path=CHECK),
    "a malformed message of a watch": Fault(INVALID, body=framed(MALFORMED), path=WATCH),
    "a malformed message of reflection": Fault(INVALID, body=framed(MALFORMED), path=REFLECTION),
    "no message": Fault(INVALID, body=None),
    "no message, health": Fault(INVALID, body=None, path=CHECK),
    "no message, watch": Fault(INVALID, body=None, path=WATCH),
    "no message, stream": Fault(OK, body=None, path=STREAM),
    "no message, reflection": Fault(OK, body=None, path=REFLECTION),
    "no bytes": Fault(INVALID, body=b""),
    "half of a message's head": Fault(INVALID, body=GOOD[:3]),
    "half a message": Fault(INVALID, body=GOOD[:-1]),
    "a message too many": Fault(OK, body=GOOD + GOOD),
    "an unknown flag": Fault(INVALID, body=b"\2" + GOOD[1:]),
    "compressed, without an encoding": Fault(INTERNAL, body=b"\1" + GOOD[1:]),
    "an encoding that is not taken": header("grpc-encoding", "snappy", INTERNAL),
    "compressed badly": Fault(INTERNAL, [("grpc-encoding", "gzip")], b"\1" + GOOD[1:]),
    "a length of two gigabytes": Fault(code_pb2.RESOURCE_EXHAUSTED, body=b"\0\x7f\xff\xff\xff1"),
    "no such method": Fault(code_pb2.UNIMPLEMENTED, path=f"/{SERVICE_NAME}/Nothing"),
    "no such path": Fault(code_pb2.UNIMPLEMENTED, path="/x"),
    "a time-out without a unit": header("grpc-timeout", "10", INTERNAL),
    "a time-out of an unknown unit": header("grpc-timeout", "10X", INTERNAL),
    "an empty time-out": header("grpc-timeout", "", INTERNAL),
    "a time-out below zero": header("grpc-timeout", "-1S", INTERNAL),
    "a broken time-out": header("grpc-timeout", "1.5S", INTERNAL),
    "a time-out that is over": header("grpc-timeout", "0n", code_pb2.DEADLINE_EXCEEDED),
    "a time-out of nine digits": header("grpc-timeout", "123456789S", OK),
    "the longest time-out": header("grpc-timeout", "99999999H", OK),
}
LATER = [("grpc-timeout", "30S"), ("grpc-encoding", "identity"), ("x-much", "little")]
"""Headers of the names that a fault may have spoilt."""


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_of_the_wire_has_its_status_and_harms_no_later_call(server: AnyServer, fault: Fault) -> None:
    async with raw(server.port) as caller:
        await caller.until(h2.events.RemoteSettingsChanged)
        await caller.flush()
        headers = [(name, fault.path if name == ":path" else value) for name, value in HEADERS]
        caller.http2.send_headers(1, [*headers, *fault.more], end_stream=fault.body is None)
        if fault.body is not None:
            caller.http2.send_data(1, fault.body, end_stream=True)
        await caller.flush()
        told = await caller.trailers(1)
        caller.http2.send_headers(3, [*HEADERS, *LATER])
        caller.http2.send_data(3, GOOD, end_stream=True)
        await caller.flush()
        later = await caller.trailers(3)

    assert int(told["grpc-status"]) == fault.status
    assert "Error" not in told.get("grpc-message", "").replace("Error parsing", "")
    assert later["grpc-status"] == "0"


LONG = "n" * 3_000_000
ECHOING = {
    "health": (CHECK, health_pb2.HealthCheckRequest(service="n" * 4_000)),
    "a model": (RECOMMEND, api.RecommendRequest(item_ids=[0], model=LONG)),
    "a key": (RECOMMEND, api.RecommendRequest(item_keys=[LONG])),
    "the model to describe": (f"/{SERVICE_NAME}/GetModel", api.GetModelRequest(model=LONG)),
}


@pytest.mark.parametrize(("path", "message"), ECHOING.values(), ids=ECHOING)
async def test_a_status_repeats_little_of_what_its_caller_sent(
    server: AnyServer, path: str, message: health_pb2.HealthCheckRequest | api.RecommendRequest
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(message.SerializeToString(), timeout=TIMEOUT)
    trailing = sum(len(key) + len(value) for key, value in refused.value.trailing_metadata())

    assert refused.value.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
    assert len(refused.value.details() or "") + trailing < 2000


async def test_health_takes_no_message_longer_than_a_name(server: AnyServer) -> None:
    async with raw(server.port) as caller:
        for path in (CHECK, WATCH):
            stream = await caller.call(path, health_pb2.HealthCheckRequest(service="n" * 5_000).SerializeToString())
            assert await caller.status(stream) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_reflection_repeats_no_long_request(server: AnyServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(REFLECTION)
        call = method(timeout=TIMEOUT)
        for name in (LONG, "short"):
            request = reflection_pb2.ServerReflectionRequest(file_by_filename=name)
            await call.write(request.SerializeToString())
        await call.done_writing()
        answers = [reflection_pb2.ServerReflectionResponse.FromString(answer) async for answer in call]

    assert [answer.original_request.file_by_filename for answer in answers] == ["", "short"]
    assert [answer.error_response.error_code for answer in answers] == [code_pb2.NOT_FOUND] * 2
