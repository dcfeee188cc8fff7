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
        self._ended = asyncio.Event()

    def begin(self, context: Context) -> None:
        """Register the call that this task answers. Raises UnavailableError once the server stops."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks[context] = task
            # Not the context's own callback: gRPC keeps it in a cycle, and the call with it until a collection.
            task.add_done_callback(partial(self._end, context))
        if self._stopping:
            raise UnavailableError("the server stops; call another server or retry")

    async def read(self, context: Context, deadline: float, most: int) -> bytes:
        """Read the message of a unary call.

        Raises ProtocolError if it is missing or has over `most` bytes, and the error by which `Uploads` ends the call.
        """
        self._uploads.begin(context, time.monotonic(), deadline)
        try:
            message: object = await context.read()
            if isinstance(message, bytes):  # else it is the end
                if len(message) > most:
                    raise ProtocolError(
                        code_pb2.RESOURCE_EXHAUSTED,
                        f"a message of {len(message)} bytes is larger than the {most} that are taken",
                    )
                return message
            await asyncio.sleep(_CANCELLED_SECONDS)
        except asyncio.CancelledError:
            refused = self._refused.pop(context, None)
            if refused is None:
                raise
            self._tasks[context].uncancel()
            raise refused from None
        finally:
            self._uploads.end(context)
        raise ProtocolError(code_pb2.INVALID_ARGUMENT, "the request ends before its message does")

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
