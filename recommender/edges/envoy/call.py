"""One gRPC call as HTTP carries it through ASGI: what its caller has sent, and how it is answered, once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeAlias, TypedDict

from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.metadata import REQUEST_ID_KEY, request_id_of
from recommender.api.status import FailedCall, refusal
from recommender.edges.calls import Call
from recommender.edges.envoy.framing import (
    ACCEPTED_ENCODINGS,
    FrameError,
    Frames,
    check_encoding,
    framed,
    header_lines,
    message_of,
    status_message,
)


class Scope(TypedDict):
    """What is read of an ASGI HTTP scope."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]


class Received(TypedDict, total=False):
    """An ASGI event of a request."""

    type: str
    body: bytes
    more_body: bool


Receive: TypeAlias = Callable[[], Awaitable[Received]]
Send: TypeAlias = Callable[[Mapping[str, object]], Awaitable[None]]
Headers: TypeAlias = Mapping[bytes, bytes]

SWEEP_SECONDS = 0.02
"""How often open calls are looked at."""
GRPC = b"application/grpc"
_HEADERS = [(b"content-type", GRPC), (b"grpc-accept-encoding", ACCEPTED_ENCODINGS.encode())]
START = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_LAST = {"type": "http.response.body", "body": b"", "more_body": False}
REQUEST_ID = REQUEST_ID_KEY.encode()
OK = (b"grpc-status", b"0")


class LeftError(Exception):
    """The caller has left: there is nobody to answer."""


class HttpCall:
    """One open call: what its caller sent of it, and how to answer."""

    __slots__ = (
        "_begun", "_ended", "asked", "deadline", "headers", "id", "late", "left", "look_at", "read", "receive", "rpc",
        "send", "started", "task", "waits",
    )  # fmt: skip

    def __init__(self, headers: Headers, receive: Receive, send: Send, now: float, rpc: Call | None) -> None:
        self.headers = headers
        self.rpc = rpc
        self.id = request_id_of(text_of(headers.get(REQUEST_ID))) if rpc is None else rpc.request_id
        self.receive = receive
        self.send = send
        self.started = now
        self.deadline = math.inf
        self.look_at = now + SWEEP_SECONDS
        self.task = asyncio.current_task()
        self.waits = False
        """Whether it waits for its request in a way that must not be cancelled."""
        self.read = False
        """Whether it reads no more of its request, so that the sweep may ask whether the caller has left."""
        self.asked = False
        """Whether that question is open."""
        self.left = False
        """Whether the answer was yes."""
        self.late = False
        """Whether its deadline has passed."""
        self._begun = False
        self._ended = False

    async def messages(self, most: int) -> AsyncIterator[bytes]:
        """The messages of the request until it ends. Raises LeftError, FrameError."""
        frames = Frames(most, check_encoding(self.headers.get(b"grpc-encoding", b"identity").decode("latin-1")))
        more = True
        try:
            while more:
                # A server that answers a question which was given up would find a future that is done.
                event = await asyncio.shield(self.receive())
                if event["type"] == "http.disconnect":
                    raise LeftError
                more = event.get("more_body", False)
                frames.feed(event.get("body", b""))
                while (message := frames.next()) is not None:
                    yield message
        finally:
            self.read = True
        if frames.pending:
            raise FrameError(code_pb2.INVALID_ARGUMENT, "the request ends in the middle of a message")

    async def message(self, most: int) -> bytes:
        """The one message of a unary call. Raises LeftError, FrameError."""
        self.waits = True
        event = await self.receive()
        # Nearly always it has come whole and plain.
        message = message_of(event.get("body", b""))
        if message is None or len(message) > most:
            message = await self._pieced(event, most)
        self.waits = False
        self.read = True
        if self.late:
            raise LeftError  # it was ended meanwhile
        return message

    async def refuse(self, error: Exception) -> None:
        """End the call with the status of an error."""
        if isinstance(error, FrameError):
            refused = FailedCall(error.code, str(error), ((REQUEST_ID_KEY, self.id),))
        else:
            refused = refusal(error, self.id)
        self.note(refused.code)
        await self._end(
            [
                (b"grpc-status", str(refused.code).encode()),
                (b"grpc-message", status_message(refused.message)),
                *header_lines(refused.metadata),
            ]
        )

    async def reply(self, message: Message) -> None:
        """Send one message of several; returns when the transport has taken it. Raises OSError if nobody is there."""
        if not self._begun:
            self._begun = True
            await self.send(START)
        body = framed(message.SerializeToString())
        taken = asyncio.ensure_future(self.send({"type": "http.response.body", "body": body, "more_body": True}))
        taken.add_done_callback(look_at_end)
        await asyncio.shield(taken)

    async def end(self) -> None:
        """End the call after its replies, as it should."""
        self.note(code_pb2.OK)
        await self._end([OK, (REQUEST_ID, self.id.encode())])

    def note(self, code: int) -> None:
        """Note with what status the call ends, once."""
        if self.rpc is not None:
            self.rpc.end(code)
            self.rpc = None

    def ask(self) -> None:
        """Ask whether the caller has left; if so the call is cancelled."""
        self.asked = True
        asyncio.ensure_future(self.receive()).add_done_callback(self._told)

    def _told(self, answer: asyncio.Future[Received]) -> None:
        self.asked = False
        if not answer.cancelled() and answer.exception() is None and answer.result()["type"] == "http.disconnect":
            self.left = True
            self.cancel()

    def cancel(self) -> None:
        """Interrupt whatever it awaits."""
        if self.task is not None:
            self.task.cancel()

    async def _end(self, lines: list[tuple[bytes, bytes]]) -> None:
        """Say how it ended, once: in trailers after replies, else in the headers, which are all then."""
        if self._ended:
            return
        self._ended = True
        self.deadline = math.inf  # what is on its way is not cut
        if not self._begun:
            await self.send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *lines]})
            await self.send(_LAST)
        else:
            await self.send(_LAST)
            await self.send({"type": "http.response.trailers", "headers": lines})

    async def _pieced(self, event: Received, most: int) -> bytes:
        frames = self._frames(most)
        while True:
            if event["type"] == "http.disconnect":
                raise LeftError
            frames.feed(event.get("body", b""))
            if (message := frames.next()) is not None:
                return message
            if not event.get("more_body", False):
                raise FrameError(code_pb2.INVALID_ARGUMENT, "the request ends before its message does")
            event = await self.receive()

    def _frames(self, most: int) -> Frames:
        return Frames(most, check_encoding(self.headers.get(b"grpc-encoding", b"identity").decode("latin-1")))


def text_of(header: bytes | None) -> str | None:
    """The value of a header."""
    return None if header is None else header.decode("latin-1")


def look_at_end(taken: asyncio.Future[None]) -> None:
    """Look at how it ended: whoever waited for it may be gone."""
    if not taken.cancelled():
        taken.exception()
