"""gRPC's framing: the messages are the same for all splits of the bytes."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable

import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from recommender.edges.envoy.framing import FrameError, Frames, framed, message_of, status_message, timeout_of

MOST = 1000


def drained(frames: Frames, data: bytes = b"") -> list[bytes]:
    messages = []
    frames.feed(data)
    while (message := frames.next()) is not None:
        messages.append(message)
    return messages


def compressed(message: bytes) -> bytes:
    return b"\1" + framed(message)[1:]


@given(messages=st.lists(st.binary(max_size=40), max_size=8), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_messages_cut_anywhere_come_out_whole_and_in_order(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(framed, messages))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    frames = Frames(MOST)
    found = []
    for start, end in itertools.pairwise(edges):
        found += drained(frames, data[start:end])

    assert found == messages
    assert not frames.pending


@given(body=st.binary(max_size=60))
def test_a_body_is_one_plain_message_or_goes_the_general_way(body: bytes) -> None:
    message = message_of(body)

    assert message is None or framed(message) == body
    assert message_of(framed(body)) == body


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages_are_unpacked(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    frames = Frames(MOST, encoding)

    assert drained(frames, compressed(pack(b"abc" * 300)) + framed(b"plain")) == [b"abc" * 300, b"plain"]


def refused(encoding: str, data: bytes) -> FrameError:
    frames = Frames(MOST, encoding)
    with pytest.raises(FrameError) as error:
        drained(frames, data)
    return error.value


def test_a_message_that_unpacks_to_more_than_is_taken_is_refused_without_unpacking_it_all() -> None:
    bomb = gzip.compress(bytes(100 * MOST))

    assert len(bomb) < MOST
    assert refused("gzip", compressed(bomb)).code == code_pb2.RESOURCE_EXHAUSTED


def test_a_message_that_is_too_large_is_refused_when_its_length_is_known() -> None:
    error = refused("identity", framed(bytes(MOST + 1))[:5])

    assert error.code == code_pb2.RESOURCE_EXHAUSTED
    assert str(error) == "a message of 1001 bytes is larger than the 1000 that are taken"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("identity", compressed(b"abc")),
        ("gzip", compressed(b"no gzip")),
        ("gzip", compressed(gzip.compress(b"abc", mtime=0)[:-4])),
    ],
)
def test_what_breaks_the_rules_is_refused(encoding: str, data: bytes) -> None:
    assert refused(encoding, data).code == code_pb2.INTERNAL


def test_a_flag_that_is_none_makes_the_message_malformed() -> None:
    assert refused("identity", b"\2" + framed(b"abc")[1:]).code == code_pb2.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"1H", 3600),
        (b"2M", 120),
        (b"10S", 10),
        (b"5m", 0.005),
        (b"7u", 7e-6),
        (b"99999999n", 0.099999999),
        (b"1 S", 1),
        (b"123456789S", None),
    ],
)
def test_a_timeout_is_read_as_its_unit_says(value: bytes | None, seconds: float | None) -> None:
    assert timeout_of(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"10", b"-1S", b"1.5S", b"1X", "١S".encode()])
def test_what_is_no_timeout_is_refused(value: bytes) -> None:
    with pytest.raises(FrameError, match="grpc-timeout"):
        timeout_of(value)


def test_a_status_message_travels_in_ascii() -> None:
    assert status_message('ä 100% "x"\n') == b'%C3%A4 100%25 "x"%0A'
