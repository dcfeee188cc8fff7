"""A batch call before its requests are parsed: divided into them, and held to the largest reply.

Parsing a message of 4 MB at once would hold the event loop for 10 to 200 ms, and empty requests take 80 times their
bytes. So requests are found by their lengths, and each is parsed separately. A short message is parsed at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from google.protobuf.message import DecodeError

from recommender.api.messages import ceiling, malformed
from recommender.api.metadata import MOST_REPLY_BYTES
from recommender.api.wire import BYTES, fields
from recommender.errors import InvalidRequestError, Violation
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api

_REQUESTS = api.BatchRecommendRequest.DESCRIPTOR.fields_by_name["requests"].number
_OTHERS = 100
"""Most other fields to skip: those of a later version of the proto."""
_SHORT_BYTES = 1 << 14
"""Parsed in 0.1 ms at most, with nothing but empty requests."""
_PART_BYTES = 1 << 18
_ITEM_BYTES = 9
"""An id and a score in a reply."""
_MOST_ITEMS = ceiling(api.RecommendRequest, "limit")
"""A request for more is refused by its own check."""


Request: TypeAlias = api.RecommendRequest | InvalidRequestError
"""A request of a call, or why its bytes are none."""


class DividedCall:
    """The requests of a batch call, each parsed when it is reached."""

    def __init__(self, message: bytes, places: Sequence[tuple[int, int]]) -> None:
        self._message = message
        self._places = places

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._places)

    def __iter__(self) -> Iterator[Request]:
        for start, end in self._places:
            try:
                yield api.RecommendRequest.FromString(self._message[start:end])
            except DecodeError:
                yield malformed(api.RecommendRequest)

    def parts(self) -> Iterator[DividedCall]:
        """Divide the call into parts of `_PART_BYTES` at most, or of one request.

        What is read of a request takes many times its bytes, so the parts are answered one after the other.
        """
        begin = size = 0
        for place, (start, end) in enumerate(self._places):
            size += end - start
            if size > _PART_BYTES and place > begin:
                yield DividedCall(self._message, self._places[begin:place])
                begin, size = place, end - start
        if begin < len(self):
            yield DividedCall(self._message, self._places[begin:])


class ShortCall:
    """The requests of a batch call whose message is so short that it was parsed at once."""

    def __init__(self, requests: Sequence[api.RecommendRequest]) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def parts(self) -> Iterator[ShortCall]:
        """The call itself: it is one part."""
        yield self


BatchCall: TypeAlias = DividedCall | ShortCall


class ReplySize:
    """The largest possible reply of a batch call, estimated with the keys of `version`."""

    def __init__(self, version: Version) -> None:
        self._limit = version.limit
        self._item_bytes = _ITEM_BYTES + (0 if version.vocabulary is None else version.vocabulary.usual_bytes)
        self._items = 0

    def may_exceed(self, requests: int) -> bool:
        """Whether so many requests could have a reply that is larger than any that is sent."""
        return requests * _MOST_ITEMS * self._item_bytes > MOST_REPLY_BYTES

    def add(self, request: Request) -> None:
        """Count the items that a request may get: its limit, or else that of the version."""
        if isinstance(request, api.RecommendRequest) and 0 <= request.limit <= _MOST_ITEMS:  # others are refused
            self._items += request.limit or self._limit

    def check(self) -> None:
        """Raise InvalidRequestError if the reply could be larger than any that is sent."""
        size = self._items * self._item_bytes
        if size > MOST_REPLY_BYTES:
            raise InvalidRequestError(
                Violation(
                    "requests",
                    f"the reply could have {size / 1e6:.0f} MB, more than the {MOST_REPLY_BYTES / 1e6:.0f} MB that are "
                    "sent: send fewer requests, or ask for fewer items",
                )
            )


def divided(message: bytes, most: int) -> BatchCall:
    """Divide a message of at most `most` requests. Raises InvalidRequestError if it is malformed, or has more."""
    if len(message) <= _SHORT_BYTES:
        with contextlib.suppress(DecodeError):
            requests = api.BatchRecommendRequest.FromString(message).requests
            if len(requests) > most:
                raise _too_many(most)
            return ShortCall(requests)
    places: list[tuple[int, int]] = []
    try:
        for count, (number, kind, start, end) in enumerate(fields(message)):
            if number == _REQUESTS and kind == BYTES:
                places.append((start, end))
            if len(places) > most or count - len(places) > _OTHERS:
                raise _too_many(most)
    except DecodeError as error:
        raise malformed(api.BatchRecommendRequest) from error
    return DividedCall(message, places)


def _too_many(most: int) -> InvalidRequestError:
    return InvalidRequestError(Violation("requests", f"a call may have {most} requests, and this has more"))
