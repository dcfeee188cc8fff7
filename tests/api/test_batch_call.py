"""A batch call is divided as protobuf would parse it, and refused before it takes memory."""

from __future__ import annotations

import sys

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from recommender.api.batch_call import BatchCall, divided
from recommender.errors import InvalidRequestError
from recommender.recommend_api.v1 import recommend_api_pb2 as api

MOST = 1000
EMPTY = b"\x0a\x00"
"""A request without a field."""
OVERLONG = b"\x8a\x00\x80\x00"
"""The same, with a tag and a length that take a byte more than they need."""

requests = st.builds(api.RecommendRequest, item_ids=st.lists(st.integers(0, 2**31 - 1)), item_keys=st.lists(st.text()))


LONG = b"\xfa\x3e\x80\x80\x01" + bytes(1 << 14)
"""An unknown field that makes a call too long to be parsed at once."""


def parsed(call: BatchCall) -> list[api.RecommendRequest]:
    """The requests of a call; raises the error of one that is malformed."""
    requests = list[api.RecommendRequest]()
    for request in call:
        if isinstance(request, InvalidRequestError):
            raise request
        requests.append(request)
    return requests


@given(
    st.lists(requests),
    st.sampled_from([b"", b"\xfa\x3e\x03new", b"\x78\x07", b"\x7d1234", b"\x7912345678", OVERLONG, LONG]),
)
def test_a_call_has_the_requests_that_protobuf_finds_in_it(requests: list[api.RecommendRequest], more: bytes) -> None:
    message = more + api.BatchRecommendRequest(requests=requests).SerializeToString() + more

    assert parsed(divided(message, MOST)) == list(api.BatchRecommendRequest.FromString(message).requests)


@given(st.binary(max_size=30), st.sampled_from([b"", LONG]))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", LONG)
@example(b"\x0a" + b"\xff" * 11, LONG)
@example(b"\x00\x00", LONG)
@example(b"\x80\x80\x80\x80\x10\x00", LONG)  # a tag of more than 32 bits
@example(b"\x0a\x80\x80\x80\x80\x80\x00", LONG)  # a size of more bytes than 32 bits need
def test_what_protobuf_finds_malformed_is_refused_as_a_whole_or_in_its_request(message: bytes, before: bytes) -> None:
    message = before + message
    try:
        api.BatchRecommendRequest.FromString(message)
    except DecodeError:
        with pytest.raises(InvalidRequestError):
            parsed(divided(message, MOST))


@pytest.mark.parametrize("piece", [EMPTY, OVERLONG, b"\x78\x07"], ids=["requests", "overlong", "unknown fields"])
def test_a_call_of_millions_of_nothings_is_refused_before_it_takes_memory(piece: bytes) -> None:
    message = piece * (4_000_000 // len(piece))
    before = sys.getallocatedblocks()
    with pytest.raises(InvalidRequestError):
        divided(message, MOST)

    assert sys.getallocatedblocks() - before < 10 * MOST


@pytest.mark.parametrize("before", [b"", LONG], ids=["short", "long"])
def test_a_malformed_request_leaves_the_others_of_its_call(before: bytes) -> None:
    whole = api.RecommendRequest(item_ids=[1, 2]).SerializeToString()
    message = before + b"".join(b"\x0a" + bytes([len(each)]) + each for each in (whole, b"\xff\xff", whole))

    first, malformed, last = divided(message, MOST)

    assert first == last == api.RecommendRequest(item_ids=[1, 2])
    assert isinstance(malformed, InvalidRequestError)


@pytest.mark.parametrize("before", [b"", LONG], ids=["short", "long"])
def test_a_call_has_so_many_requests_and_not_one_more(before: bytes) -> None:
    assert len(divided(before + 10 * EMPTY, 10)) == 10
    with pytest.raises(InvalidRequestError, match="a call may have 10 requests, and this has more"):
        divided(before + 11 * EMPTY, 10)


def test_parts_have_every_request_once_in_order() -> None:
    call = [api.RecommendRequest(item_ids=[row] * (row % 7) * 20_000) for row in range(40)]
    whole = divided(api.BatchRecommendRequest(requests=call).SerializeToString(), MOST)
    parts = [parsed(part) for part in whole.parts()]

    assert len(parts) > 1
    assert [request for part in parts for request in part] == call
