"""Replies of one stream: each is sent once, and those that get ready while others are being sent go together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from recommender.edges.streams import Stream
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.fakes import on_virtual_time


def number_of(reply: Message) -> int:
    assert isinstance(reply, api.StreamRecommendResponse)
    return reply.correlation_id


class Transport:
    """Takes replies, each time after so many seconds; notes which came together."""

    def __init__(self, seconds: float, *, fails: bool = False) -> None:
        self.taken: list[list[int]] = []
        self._seconds = seconds
        self._fails = fails
        self._busy = False

    async def send(self, *replies: Message) -> None:
        assert not self._busy, "replies are sent one after the other"
        self._busy = True
        await asyncio.sleep(self._seconds)
        if self._fails:
            raise OSError
        self.taken.append([number_of(reply) for reply in replies])
        self._busy = False


async def answered_after(seconds: Sequence[float], transport: Transport, *, most_open: int, in_order: bool) -> None:
    """Serve a stream of messages, each of which is answered after so many seconds."""

    async def messages() -> AsyncIterator[bytes]:
        for number in range(len(seconds)):
            yield number.to_bytes(2)

    async def answer(message: bytes) -> Message:
        number = int.from_bytes(message)
        await asyncio.sleep(seconds[number])
        return api.StreamRecommendResponse(correlation_id=number)

    await Stream(answer, transport.send, most_open=most_open, in_order=in_order).serve(messages())


def test_replies_that_get_ready_while_another_is_being_sent_go_together() -> None:
    transport = Transport(seconds=1.0)
    on_virtual_time(answered_after([0.0, 0.1, 0.2, 0.3, 1.5], transport, most_open=8, in_order=False))

    assert transport.taken == [[0], [1, 2, 3], [4]]


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0, 3.0]), max_size=20),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.integers(1, 8),
    st.booleans(),
)
def test_every_message_gets_one_reply_whatever_the_times(
    seconds: list[float],
    of_transport: float,
    most_open: int,
    in_order: bool,  # noqa: FBT001 (a parameter)
) -> None:
    transport = Transport(of_transport)
    on_virtual_time(answered_after(seconds, transport, most_open=most_open, in_order=in_order))

    taken = [number for together in transport.taken for number in together]
    assert (taken if in_order else sorted(taken)) == list(range(len(seconds)))
    assert all(0 < len(together) <= most_open for together in transport.taken)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_reply_that_cannot_be_sent_ends_the_stream(in_order: bool) -> None:  # noqa: FBT001
    transport = Transport(seconds=1.0, fails=True)
    with pytest.raises(OSError):  # noqa: PT011 (it is the one that is raised)
        on_virtual_time(answered_after([0.0, 0.1, 0.2], transport, most_open=8, in_order=in_order))

    assert transport.taken == []
