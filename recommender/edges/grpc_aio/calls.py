"""Open calls of a grpc.aio server, up to the last byte of their replies.

grpc.aio cannot end a call that has returned its reply, and a stop cancels calls that it has not handed over yet:
clients do not retry CANCELLED. So connections are closed by their sockets, which clients see as UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from functools import partial
from typing import NoReturn

from google.rpc import code_pb2

from recommender.edges.calls import ProtocolError
from recommender.edges.grpc_aio.spans import Context
from recommender.edges.held import Held
from recommender.edges.sockets import cut, peer_of_uri, send_no_more
from recommender.edges.uploads import Uploads
from recommender.errors import UnavailableError

_SWEEP_SECONDS = 0.1
_CANCELLED_SECONDS = 0.01
"""gRPC reports a cancelled call as one without a message first, and as cancelled within this time."""
_LAST_SECONDS = 1.0
"""How long the last byte of a call may take after its deadline, or after all else if it has none."""


class OpenCalls:
    """The open calls of one server. A sweep ends calls whose message, or whose reader, takes too long."""

    def __init__(self, max_message_bytes: int) -> None:
        self.port = 0
        """Where the server listens."""
        self._tasks: dict[Context, asyncio.Task[object]] = {}
        self._uploads: Uploads[Context] = Uploads(max_message_bytes, self._sweep_later, lambda call: call.peer())
        self._refused: dict[Context, Exception] = {}
        self._unread: dict[Context, float] = {}
        self.held = Held()
        self._replies: dict[Context, tuple[str, int]] = {}
        self._cuts: set[asyncio.Task[None]] = set()
        self._sweeping = False
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()

    def begin(self, context: Context) -> None:
        """Register the call that this task answers. Raises UnavailableError once the server stops."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)  # without it asks for the process's id, a system call
        if task is not None:
            self._tasks[context] = task
            # Not the context's own callback: gRPC keeps it in a cycle, and the call with it until a collection.
            task.add_done_callback(partial(self._end, context))
        if self._stopping:
            raise UnavailableError("the server stops; call another server or retry")

    async def read(self, context: Context, deadline: float, most: int) -> bytes:
        """Read the message of a unary call.

        Raises ProtocolError if it is missing or has over `most` bytes. Cancelled, it may have a `refusal_of` the call.
        """
        self.expect(context, time.monotonic(), deadline)
        message: object = await context.read()
        if not isinstance(message, bytes):
            message = await self.missing()
        self.received(context, message, most)
        return message

    def expect(self, context: Context, now: float, deadline: float) -> None:
        """Note that the message of a unary call is read. If it takes too long, the call is cancelled."""
        self._uploads.begin(context, now, deadline)

    def received(self, context: Context, message: bytes, most: int) -> None:
        """Note that it has come. Raises ProtocolError if it has over `most` bytes."""
        self._uploads.end(context)
        if len(message) > most:
            raise ProtocolError(
                code_pb2.RESOURCE_EXHAUSTED,
                f"a message of {len(message)} bytes is larger than the {most} that are taken",
            )

    async def missing(self) -> NoReturn:
        """Fail a call whose request ended before its message did. Raises ProtocolError."""
        await asyncio.sleep(_CANCELLED_SECONDS)
        raise ProtocolError(code_pb2.INVALID_ARGUMENT, "the request ends before its message does")

    def refusal_of(self, context: Context) -> Exception | None:
        """The error of a call that was cancelled for its slow message while its task continues; None for any other."""
        refused = self._refused.pop(context, None)
        if refused is not None:
            self._tasks[context].uncancel()
        return refused

    def hold(self, context: Context, size: int) -> None:
        """Count the bytes of a large reply as held until the call has ended. Raises QuotaError if too many are."""
        connection = context.peer()
        self.held.hold(connection, size)
        self._replies[context] = connection, size

    def leave(self, context: Context, deadline: float) -> None:
        """Expect the caller to read the rest by this deadline, or soon if it is past or infinite; else `cut` it off."""
        soon = time.monotonic() + _LAST_SECONDS
        self._unread[context] = deadline if soon < deadline < math.inf else soon
        if not self._sweeping:
            self._sweep_later()

    def cut(self, *contexts: Context) -> None:
        """Close the connections of these calls."""
        peers = set()
        for context in contexts:
            self._unread.pop(context, None)
            with suppress(ValueError):
                peers.add(peer_of_uri(context.peer()))
        cutting = asyncio.create_task(asyncio.to_thread(cut, self.port, peers))
        self._cuts.add(cutting)
        cutting.add_done_callback(self._cuts.discard)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give open ones `grace` seconds, and end all connections once what was sent has arrived."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._tasks:
                    self._ended.clear()
                    await self._ended.wait()
        send_no_more(self.port)

    def _end(self, context: Context, _: asyncio.Task[object]) -> None:
        self._tasks.pop(context, None)
        self._unread.pop(context, None)
        self._uploads.end(context)
        if self._replies and (reply := self._replies.pop(context, None)):
            self.held.release(*reply)
        if self._stopping:
            self._ended.set()

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        for context, reason in self._uploads.ended(now):
            self._refused[context] = reason
            self._tasks[context].cancel()
        if late := [context for context, deadline in self._unread.items() if now > deadline]:
            self.cut(*late)
        self._sweeping = False
        if self._uploads or self._unread:
            self._sweep_later()
