"""One gRPC call over ASGI: reads its request, sends its reply, and holds the states of both.

A call has two states, one for each direction. Only the moves in `states.REQUEST_MOVES` and `REPLY_MOVES` are legal; any
other raises IllegalMoveError.

An ASGI server reports a disconnect only on another `receive()`. So a call that has read its request can `ask`.
"""

from __future__ import annotations

import asyncio
import math
import time

from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.metadata import REQUEST_ID_KEY
from recommender.edges.calls import Call
from recommender.edges.envoy.asgi import Client, Headers, Receive, Received, Send
from recommender.edges.envoy.framing import (
    ACCEPTED_ENCODINGS,
    FrameError,
    Frames,
    encoding_of,
    framed,
    header_lines,
    message_of,
    status_message,
)
from recommender.edges.envoy.states import REPLY_MOVES, REQUEST_MOVES, Reply, Request
from recommender.edges.method import Messages
from recommender.edges.uploads import Uploads
from recommender.errors import DeadlineError

# Bound once: looking a member up costs as much as a move.
_UNREAD, _AWAITED, _STREAMED, _READ, _ASKED, _LATE, _LEFT = Request
_NONE, _BEGUN, _ENDED = Reply

SWEEP_SECONDS = 0.02
"""How often open calls are checked."""
GRPC = b"application/grpc"
_HEADERS = [(b"content-type", GRPC), (b"grpc-accept-encoding", ACCEPTED_ENCODINGS.encode())]
_START = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_BODY_END = {"type": "http.response.body", "body": b"", "more_body": False}
_REQUEST_ID = REQUEST_ID_KEY.encode()
_PIECE_BYTES = 1 << 15
"""Replies are serialised up to here before the event loop has its turn."""
_LAST_SECONDS = 1.0
"""How long the last byte of a large reply may take after the deadline."""
_LONGEST_SECONDS = 600.0
"""The most time that it may take, for any deadline."""
_OK = (b"grpc-status", b"0")
_PASSED = DeadlineError("the deadline passed while the call was open")


class LeftError(Exception):
    """The caller has disconnected: no answer is possible."""


class IllegalMoveError(Exception):
    """An operation that the call's state does not allow."""


class HttpCall:
    """One open call."""

    __slots__ = (
        "_receive",
        "_reply",
        "_request",
        "_send",
        "_task",
        "_uploads",
        "call",
        "client",
        "deadline",
        "headers",
        "longest_look",
        "look_at",
        "reason",
        "started",
    )

    def __init__(
        self,
        headers: Headers,
        receive: Receive,
        send: Send,
        call: Call,
        client: Client | None = None,
        *,
        uploads: Uploads[HttpCall] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.headers = headers
        self.client = client
        self.call = call
        self.started = time.monotonic()
        self.deadline = math.inf
        """When the sweep is to `expire` the call."""
        self.look_at = self.started + SWEEP_SECONDS
        """When the sweep is to `ask`."""
        self.longest_look = 1.0
        """The call ends at most so many seconds after its caller has left."""
        self._uploads = uploads
        self.reason: Exception = _PASSED
        """The error that fails an expired call."""
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task(loop)  # without a loop CPython 3.11 asks for the process's id
        self._request = _UNREAD
        self._reply = _NONE

    @property
    def late(self) -> bool:
        """Whether `expire` cancelled the call's task."""
        return self._request is _LATE

    @property
    def left(self) -> bool:
        """Whether the caller's disconnect cancelled the call's task."""
        return self._request is _LEFT

    async def message(self, most: int) -> bytes:
        """Receive the one message of a unary call, of at most `most` bytes. Raises LeftError, ProtocolError."""
        self._move_request(_AWAITED)
        event = await self._receive()
        # Nearly always the message arrives whole and uncompressed.
        message = message_of(event.get("body", b""))
        if message is None or len(message) > most or self._request is _LATE:
            message = await self._pieced(event, most)
        self._move_request(_READ)
        return message

    async def messages(self, most: int) -> Messages:
        """Receive messages of at most `most` bytes until the request ends. Raises LeftError, ProtocolError."""
        frames = _frames(self.headers, most)
        self._move_request(_STREAMED)
        more = True
        try:
            while more:
                # Cancelled, it would leave the server a future that is done.
                event = await asyncio.shield(self._receive())
                if event["type"] == "http.disconnect":
                    raise LeftError
                more = event.get("more_body", False)
                frames.feed(event.get("body", b""))
                while (message := frames.next()) is not None:
                    yield message
                self._note(frames)
        finally:
            self._note()
            if self._request is _STREAMED:
                self._move_request(_READ)
        if frames.pending:
            raise FrameError(code_pb2.INVALID_ARGUMENT, "the request ends in the middle of a message")

    async def send(self, *replies: Message) -> None:
        """Send some of the call's replies; returns when the transport has taken them. Raises LeftError.

        They go in pieces of about `_PIECE_BYTES`: to hand one over takes as long as to write several replies.
        """
        try:
            if self._reply is not _BEGUN:
                self._move_reply(_BEGUN)
                await self._send(_START)
            piece = b""
            for reply in replies:
                if len(piece) > _PIECE_BYTES:
                    await self._take(piece)
                    piece = b""
                piece += framed(reply.SerializeToString())
            await self._take(piece)
        except OSError as error:
            raise LeftError from error

    async def answer(self, reply: bytes) -> None:
        """Send the one reply and end the call. Raises OSError if the caller has left."""
        self._move_reply(_ENDED)
        send = self._send
        await send(_START)
        await send({"type": "http.response.body", "body": framed(reply), "more_body": False})
        call = self.call
        await send({"type": "http.response.trailers", "headers": [_OK, (_REQUEST_ID, call.request_id.encode())]})
        call.end(code_pb2.OK)

    async def answer_large(self, reply: bytes) -> None:
        """Send the one reply and end the call once it is read. Raises OSError, or TimeoutError at its deadline."""
        patience = min(max(self.deadline - time.monotonic(), _LAST_SECONDS), _LONGEST_SECONDS)
        self._move_reply(_ENDED)
        await self._send(_START)
        await self._take(framed(reply))
        # Envoy accepts it only when little more than its buffers hold is still unread.
        async with asyncio.timeout(patience):
            await self._take(b"")
        await self._send(_BODY_END)
        lines = [_OK, (_REQUEST_ID, self.call.request_id.encode())]
        await self._send({"type": "http.response.trailers", "headers": lines})
        self.call.end(code_pb2.OK)

    async def finish(self) -> None:
        """End the call after its replies. Raises OSError if the caller has left."""
        self.call.end(code_pb2.OK)
        await self._end([_OK, (_REQUEST_ID, self.call.request_id.encode())])

    async def fail(self, error: Exception) -> None:
        """End the call with the status of an error. Raises OSError if the caller has left."""
        failed = self.call.fail(error)
        await self._end(
            [
                (b"grpc-status", str(failed.code).encode()),
                (b"grpc-message", status_message(failed.message)),
                *header_lines(failed.metadata),
            ]
        )

    def expire(self, reason: Exception | None = None) -> asyncio.Task[None] | None:
        """End the call for its deadline, or for another reason that its caller gets.

        The call is cancelled. If it must not be, the task that answers it is returned.
        """
        self.reason = reason or self.reason
        awaited = self._request is _AWAITED
        self._move_request(_LATE)
        self.deadline = math.inf
        if not awaited:
            self._cancel()
            return None
        # After the end of the response the server reports a disconnect, and `message` returns.
        failing = asyncio.create_task(self.fail(self.reason))
        failing.add_done_callback(retrieve_error)
        return failing

    def ask(self, now: float) -> None:
        """Ask whether the caller has left, which cancels the call; a no-op before the request is read."""
        self.look_at = now + max(SWEEP_SECONDS, min((now - self.started) / 2, self.longest_look))
        if self._request is _READ:
            self._move_request(_ASKED)
            asyncio.ensure_future(self._receive()).add_done_callback(self._told)

    def _told(self, answer: asyncio.Future[Received]) -> None:
        gone = not answer.cancelled() and answer.exception() is None and answer.result()["type"] == "http.disconnect"
        if gone:
            self._move_request(_LEFT)
            self.deadline = math.inf
            self._cancel()
        elif self._request is _ASKED:
            self._move_request(_READ)

    def _move_request(self, to: Request) -> None:
        if to not in REQUEST_MOVES[self._request]:
            raise IllegalMoveError(
                f"the request of {self.call.request_id} is {self._request.name}, not to be {to.name}"
            )
        self._request = to

    def _move_reply(self, to: Reply) -> None:
        if to not in REPLY_MOVES[self._reply]:
            raise IllegalMoveError(f"the reply to {self.call.request_id} is {self._reply.name}, not to be {to.name}")
        self._reply = to
        if to is _ENDED:
            self.deadline = math.inf

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _end(self, lines: list[tuple[bytes, bytes]]) -> None:
        """Send the status: in trailers after replies, otherwise in headers with no body."""
        begun = self._reply is _BEGUN
        self._move_reply(_ENDED)
        if begun:
            await self._send(_BODY_END)
            await self._send({"type": "http.response.trailers", "headers": lines})
        else:
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *lines]})
            await self._send(_BODY_END)

    async def _pieced(self, event: Received, most: int) -> bytes:
        frames = _frames(self.headers, most)
        try:
            while True:
                # It may have been failed for its deadline meanwhile.
                if event["type"] == "http.disconnect" or self._request is _LATE:
                    raise LeftError
                frames.feed(event.get("body", b""))
                if (message := frames.next()) is not None:
                    return message
                if not event.get("more_body", False):
                    raise FrameError(code_pb2.INVALID_ARGUMENT, "the request ends before its message does")
                self._note(frames)
                event = await self._receive()
        finally:
            self._note()

    def _note(self, frames: Frames | None = None) -> None:
        """Note whether part of a message is held."""
        if self._uploads is not None:
            if frames is not None and frames.pending:
                self._uploads.begin(self, time.monotonic(), self.deadline)
            else:
                self._uploads.end(self)

    async def _take(self, body: bytes) -> None:
        """Send part of the body; returns when Envoy has taken it."""
        taken = asyncio.ensure_future(self._send({"type": "http.response.body", "body": body, "more_body": True}))
        taken.add_done_callback(retrieve_error)
        await asyncio.shield(taken)


def _frames(headers: Headers, most: int) -> Frames:
    return Frames(most, encoding_of(headers.get(b"grpc-encoding", b"identity")))


def retrieve_error(done: asyncio.Future[None]) -> None:
    """Mark the error of a future as retrieved, in case nothing awaits it."""
    if not done.cancelled():
        done.exception()
