"""The asynchronous client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from recommender.client.answers import Recommendations, Refusal, outcome_of, recommendations_of
from recommender.client.changes import NewItem, removals, upserts
from recommender.client.connection import authorization, naming, options_for, pause_after, time_left
from recommender.client.requests import Options, Request, request_of
from recommender.client.tracing import aio_interceptors
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as catalogue_grpc
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

_LONGEST_STREAM_TIMEOUT = 3600.0
"""Seconds: the proto allows no more."""

A = TypeVar("A")
R = TypeVar("R")


class Client:
    """Calls one server, at `target` (`host:port`), over one connection; an async context manager.

    Without `credentials` the channel is plaintext; `token` is sent with every call. Calls raise grpc.aio.AioRpcError
    with the server's status. `timeout` (seconds, or inf) covers a call with all its retries.

    If OpenTelemetry's tracer provider is set before, each attempt is a span, and the server continues its trace.
    """

    def __init__(
        self, target: str, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None
    ) -> None:
        self._authorization = authorization(token)
        self._channel = (
            grpc.aio.insecure_channel(target, options_for(target), interceptors=aio_interceptors())
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options_for(target), interceptors=aio_interceptors())
        )
        self._stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(self._channel)
        self._catalogue: catalogue_grpc.CatalogueServiceAsyncStub = catalogue_grpc.CatalogueServiceStub(self._channel)

    async def recommend(
        self, item_ids: Sequence[int] = (), *, timeout: float, request_id: str = "", **options: Unpack[Options]
    ) -> Recommendations:
        """Recommendations for a history, oldest item first; the server's log and traces name the call `request_id`."""
        request = request_of(item_ids, **options)
        return recommendations_of(await self._call(self._stub.Recommend, request, timeout, request_id))

    async def recommend_many(self, requests: Iterable[Request], *, timeout: float) -> list[Recommendations | Refusal]:
        """Answers to many requests in one call, in their order, with one outcome each."""
        request = api.BatchRecommendRequest(requests=requests)
        response = await self._call(self._stub.BatchRecommend, request, timeout)
        return [outcome_of(result) for result in response.results]

    async def stream(
        self, requests: AsyncIterable[Request], *, timeout: float
    ) -> AsyncIterator[tuple[int, Recommendations | Refusal]]:
        """Answers on one open stream, each as soon as it is ready, with the place of its request.

        `timeout` (seconds, an hour at most) holds for each request from its arrival. The stream ends when the requests
        do and all are answered, or when the server drains.
        """
        in_time = max(round(min(timeout, _LONGEST_STREAM_TIMEOUT) * 1e3), 1)

        async def messages() -> AsyncIterator[api.StreamRecommendRequest]:
            place = itertools.count()
            async for request in requests:
                yield api.StreamRecommendRequest(correlation_id=next(place), request=request, timeout_ms=in_time)

        async for reply in self._stub.StreamRecommend(messages(), metadata=self._authorization):
            yield reply.correlation_id, outcome_of(reply)

    async def get_model(self, model: str = "", *, timeout: float) -> api.Model:
        """The description of a model; of the one being served, if none is named."""
        return (await self._call(self._stub.GetModel, api.GetModelRequest(model=model), timeout)).model

    async def list_models(self, *, timeout: float) -> list[api.Model]:
        """The descriptions of all models that are served."""
        return list((await self._call(self._stub.ListModels, api.ListModelsRequest(), timeout)).models)

    async def upsert_items(self, model: str, items: Iterable[NewItem], *, timeout: float) -> int:
        """Add items to a version, `name@version`, or replace them; returns how many were not there.

        A thousand go into a call, each with its own `timeout`; a call that fails leaves those before it done.
        """
        added = 0
        for request in upserts(model, items):
            added += (await self._call(self._catalogue.UpsertItems, request, timeout)).added
        return added

    async def remove_items(self, keys: Sequence[str], *, model: str = "", timeout: float) -> int:
        """Remove new items, of one version or of all; returns how many there were. Calls are as of `upsert_items`."""
        removed = 0
        for request in removals(keys, model):
            removed += (await self._call(self._catalogue.RemoveItems, request, timeout)).removed
        return removed

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Callable[..., Awaitable[R]], request: A, timeout: float, request_id: str = "") -> R:
        deadline = time.monotonic() + timeout
        metadata = (*naming(request_id), *self._authorization)
        for attempt in itertools.count(1):
            try:
                return await method(request, timeout=time_left(deadline), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                pause = pause_after(error.code(), error.trailing_metadata(), attempt, deadline)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")
