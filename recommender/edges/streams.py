"""An open stream of requests, answered as each is ready, with a bound on those in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf.message import Message

from recommender.edges.method import Send


class Stream:
    """Answers the messages of one stream, each as soon as its reply is ready.

    A message is in flight from when it is read until the transport has taken its reply. With `most_open` in flight
    nothing is read, so flow control holds up a slow reader, which costs no memory. Replies that get ready while others
    are being sent go together. With `in_order` a reply waits for those to the messages before its own.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Awaitable[Message]],
        send: Send,
        *,
        most_open: int,
        in_order: bool = False,
    ) -> None:
        self._answer = answer
        self._send = send
        self._room = asyncio.Semaphore(most_open)
        self._sending = asyncio.Lock()
        self._ready: list[Message] = []
        self._reader: asyncio.Task[None] | None = None
        self._stopped = False
        self._in_order = in_order
        self._last: asyncio.Task[None] | None = None

    async def serve(self, messages: AsyncIterator[bytes]) -> None:
        """Read until the caller or `stop_reading` ends it; return when everything read is answered.

        Cancelling it drops what is in flight. An exception of `answer` or `send` ends the stream.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reader = tasks.create_task(self._read(messages, tasks))
                if self._stopped:
                    self._reader.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def stop_reading(self) -> None:
        """Read no more messages; those already read are still answered."""
        self._stopped = True
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, messages: AsyncIterator[bytes], tasks: asyncio.TaskGroup) -> None:
        await self._room.acquire()
        async for message in messages:
            self._last = tasks.create_task(self._respond(message, self._last if self._in_order else None))
            await self._room.acquire()

    async def _respond(self, message: bytes, before: asyncio.Task[None] | None) -> None:
        try:
            reply = await self._answer(message)
            if before is not None:
                await asyncio.wait((before,))
            self._ready.append(reply)
            async with self._sending:
                if self._ready:  # else the one before has sent it too
                    replies, self._ready = self._ready, []
                    await self._send(*replies)
        finally:
            self._room.release()
