"""One RPC, ready for any edge: its path, what it costs a token, and what answers it."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.edges.calls import Call, ProtocolError
from recommender.edges.uploads import MESSAGE_SECONDS
from recommender.errors import DeadlineError

Metadata: TypeAlias = Collection[tuple[str, str | bytes]]
Begin: TypeAlias = Callable[[Metadata], Call]


class Caller(Protocol):
    """The caller of a call."""

    @property
    def authorization(self) -> str | None:
        """The call's `authorization`; None if absent."""

    @property
    def connection(self) -> str:
        """Names its connection."""


Enter: TypeAlias = Callable[[Caller], AbstractContextManager[object]]
"""Lets a call in; the result is held open until the call ends. Raises RecommenderError."""
Answer: TypeAlias = Callable[[bytes, float, str], Awaitable[Message]]
"""Takes a message, a deadline on the clock of `time.monotonic`, and the request id."""
Messages: TypeAlias = AsyncGenerator[bytes, None]


class Send(Protocol):
    """Sends replies of a call that has several."""

    def __call__(self, *replies: Message) -> Awaitable[None]:
        """Send these, in order; returns when the transport has taken them."""


Serve: TypeAlias = Callable[[Messages, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """The parts that every RPC has: `/package.Service/Name`, how a call begins, and its default time-out.

    `enter` checks a token; None means that the call needs none. `timeout` is in seconds. A message of over `largest`
    bytes is refused on every edge. Calls of a method that is not `traced` have no span.
    """

    path: str
    begin: Begin = Call.begin
    enter: Enter | None = None
    timeout: float = math.inf
    largest: int = sys.maxsize
    traced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary(_Method):
    """One message in, one reply out."""

    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming(_Method):
    """Messages in, replies out, until `serve` returns. A call that is `asked_once` has one message, for `only`."""

    serve: Serve
    asked_once: bool = False


Method: TypeAlias = Unary | Streaming

ANY_OTHER: Final = ""
"""Path of the method that answers the calls of all paths that no other method has."""


async def only(messages: Messages) -> bytes:
    """Read the one message of a call that may have several replies.

    Raises ProtocolError if it is missing, DeadlineError if it takes longer than MESSAGE_SECONDS.
    """
    try:
        async with asyncio.timeout(MESSAGE_SECONDS), aclosing(messages):
            async for message in messages:
                return message
    except TimeoutError:
        raise DeadlineError("the message took too long to come in") from None
    raise ProtocolError(code_pb2.INVALID_ARGUMENT, "the request ends before its message does")
