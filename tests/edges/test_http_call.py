"""The states of a call over ASGI: what may follow what."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import code_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from recommender.edges.calls import Call
from recommender.edges.envoy.asgi import Received
from recommender.edges.envoy.call import HttpCall, IllegalMoveError, LeftError
from recommender.edges.envoy.framing import Frames

MOST = 100
REQUEST = Received(type="http.request", body=bytes(5), more_body=False)
GONE = Received(type="http.disconnect")


class Caller:
    """An ASGI server: gives these events, then waits; notes what is sent."""

    def __init__(self, *events: Received) -> None:
        self.events = list(events)
        self.asked = 0
        self.sent: list[Mapping[str, object]] = []

    async def receive(self) -> Received:
        self.asked += 1
        if not self.events:
            await asyncio.Event().wait()
        return self.events.pop(0)

    async def send(self, message: Mapping[str, object]) -> None:
        self.sent.append(message)

    def call(self) -> HttpCall:
        return HttpCall({}, self.receive, self.send, Call("id"))


async def test_a_call_is_ended_once() -> None:
    caller = Caller(REQUEST)
    call = caller.call()
    await call.message(MOST)
    await call.answer(b"")
    sent = len(caller.sent)

    for end in (call.answer(b""), call.finish(), call.fail(call.reason), call.send(HealthCheckResponse())):
        with pytest.raises(IllegalMoveError):
            await end

    assert len(caller.sent) == sent


@pytest.mark.parametrize(("replies", "size", "pieces"), [(1, 0, 1), (100, 100, 1), (12, 10_000, 6), (3, 100_000, 3)])
async def test_replies_that_are_sent_together_go_whole_and_in_order_in_few_pieces(
    replies: int, size: int, pieces: int
) -> None:
    caller = Caller(REQUEST)
    sent = [StringValue(value=f"{number} " * size) for number in range(replies)]
    await caller.call().send(*sent)

    start, *bodies = caller.sent
    assert start["type"] == "http.response.start"
    assert len(bodies) == pieces
    frames = Frames(1 << 20, "identity")
    for body in bodies:
        assert isinstance(body["body"], bytes)
        frames.feed(body["body"])
    assert [StringValue.FromString(frames.next() or b"") for _ in sent] == sent
    assert frames.next() is None
    assert not frames.pending


async def test_a_request_is_read_once() -> None:
    call = Caller(REQUEST).call()
    await call.message(MOST)

    with pytest.raises(IllegalMoveError):
        await call.message(MOST)
    with pytest.raises(IllegalMoveError):
        await anext(call.messages(MOST))


async def test_nobody_is_asked_about_before_the_request_is_read_nor_twice_at_once() -> None:
    caller = Caller(REQUEST)
    call = caller.call()
    call.ask(call.started)
    assert caller.asked == 0

    await call.message(MOST)
    call.ask(call.started)
    call.ask(call.started)
    await asyncio.sleep(0)
    assert caller.asked == 2  # for the message, and whether its sender is there


async def test_a_caller_who_has_left_cancels_its_call_and_no_deadline_does_so_again() -> None:
    caller = Caller(REQUEST, GONE)

    async def answered() -> tuple[bool, bool]:
        call = caller.call()
        await call.message(MOST)
        call.ask(call.started)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        with pytest.raises(IllegalMoveError):
            call.expire()
        return call.left, call.late

    assert await asyncio.create_task(answered()) == (True, False)


async def test_a_late_call_that_still_awaits_its_message_is_failed_and_not_cancelled() -> None:
    arrive = asyncio.Event()
    caller = Caller()

    async def receive() -> Received:
        await arrive.wait()
        return REQUEST

    call = HttpCall({}, receive, caller.send, Call("id"))
    reading = asyncio.ensure_future(call.message(MOST))
    await asyncio.sleep(0)
    failing = call.expire()
    assert failing is not None
    await failing
    arrive.set()

    with pytest.raises(LeftError):
        await reading
    headers = caller.sent[0]["headers"]
    assert isinstance(headers, list)
    assert (b"grpc-status", str(code_pb2.DEADLINE_EXCEEDED).encode()) in headers
