"""One open stream: requests come in, each is answered when it is ready, and nothing grows without bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from recommender.recommend_api.v1 import recommend_api_pb2 as api

Answer: TypeAlias = Callable[[api.StreamRecommendRequest], Awaitable[api.StreamRecommendResponse]]
Send: TypeAlias = Callable[[api.StreamRecommendResponse], Awaitable[None]]


class Stream:
    """Answers the requests of one stream in the order in which answers come.

    A request is open from when it is read until its reply was taken by the transport. At most `most_open` are:
    beyond that nothing is read, so that a slow reader is held up by its own flow control and costs no memory.
    """

    def __init__(self, answer: Answer, send: Send, *, most_open: int) -> None:
        self._answer = answer
        self._send = send
        self._room = asyncio.Semaphore(most_open)
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._stopped = False

    async def serve(self, requests: AsyncIterator[api.StreamRecommendRequest]) -> None:
        """Read until the caller or `stop_reading` ends it, then until all that was read is answered.

        Cancelled, it drops what is open. An exception of `answer` or `send` ends the stream.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reader = tasks.create_task(self._read(requests, tasks))
                if self._stopped:
                    self._reader.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def stop_reading(self) -> None:
        """Take no more requests; those that were read are still answered."""
        self._stopped = True
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, requests: AsyncIterator[api.StreamRecommendRequest], tasks: asyncio.TaskGroup) -> None:
        await self._room.acquire()
        async for request in requests:
            tasks.create_task(self._respond(request))
            await self._room.acquire()

    async def _respond(self, request: api.StreamRecommendRequest) -> None:
        try:
            response = await self._answer(request)
            async with self._sending:
                await self._send(response)
        finally:
            self._room.release()
