"""Every RPC, once for all edges: who may call it, how its messages are read, what answers it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Awaitable, Iterator

from recommender.api.messages import decoded
from recommender.api.metadata import SERVICE_NAME
from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls
from recommender.edges.health import SERVICE_NAME as HEALTH_NAME
from recommender.edges.health import Health
from recommender.edges.method import Answer, Begin, Enter, Messages, Method, Send, Serve, Streaming, Unary
from recommender.edges.reflection import Reflection
from recommender.edges.streams import Stream
from recommender.errors import QuotaError, UnavailableError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.security.access import Access
from recommender.settings.network import NetworkSettings

_STREAM_RETRY_SECONDS = 1.0
"""When to retry a stream that was refused because too many are open."""


class Methods:
    """The RPCs of RecommenderService, health and reflection; iterating gives each `Method`.

    Calls of RecommenderService are noted in `calls`, and fail with UNAVAILABLE until `open`. A call or a stream's
    message without a deadline gets `default_timeout`, in seconds. A stream has at most `most_open` requests in
    flight; at most `most_streams` streams are open. With `access` every call needs a token, except health if
    `open_health`.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        default_timeout: float = math.inf,
        most_open: int = 128,
        most_streams: int = 1024,
        access: Access | None = None,
        open_health: bool = True,
        reflection: bool = True,
    ) -> None:
        self._calls = calls
        self._default_timeout = default_timeout
        self._most_open = most_open
        self._most_streams = most_streams
        self._access = access
        self._service: RecommenderService | None = None
        self._streams: set[Stream] = set()
        self._draining = False
        self.health = Health(("", SERVICE_NAME))
        self._methods = [
            self._unary("Recommend", self._recommend),
            # The service charges each request of these two as it reads it.
            self._unary("BatchRecommend", self._batch_recommend, requests=0),
            self._streaming("StreamRecommend", self._stream_recommend, requests=0),
            self._unary("GetModel", self._get_model),
            self._unary("ListModels", self._list_models),
            *self.health.methods(None if open_health else self._enter(), default_timeout),
        ]
        if reflection:
            self._methods += Reflection((SERVICE_NAME, HEALTH_NAME)).methods(self._enter())

    def __iter__(self) -> Iterator[Method]:
        return iter(self._methods)

    @property
    def keys(self) -> frozenset[str]:
        """Metadata keys that `Method.begin` reads; an edge may leave out all others."""
        return self._calls.keys

    def open(self, service: RecommenderService) -> None:
        """Answer with this service from now on."""
        self._service = service

    def drain(self) -> None:
        """Read no more from streams; each ends once everything read is answered."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.stop_reading()

    def _unary(self, name: str, answer: Answer, requests: int = 1) -> Method:
        return Unary(
            path=f"/{SERVICE_NAME}/{name}",
            begin=self._begin(name),
            enter=self._enter(requests),
            timeout=self._default_timeout,
            traced=True,
            answer=answer,
        )

    def _streaming(self, name: str, serve: Serve, requests: int = 1) -> Method:
        return Streaming(
            path=f"/{SERVICE_NAME}/{name}",
            begin=self._begin(name),
            enter=self._enter(requests),
            traced=True,
            serve=serve,
        )

    def _begin(self, name: str) -> Begin:
        return functools.partial(self._calls.begin, f"{SERVICE_NAME}/{name}")

    def _enter(self, requests: int = 1) -> Enter | None:
        access = self._access
        return None if access is None else lambda caller: access.enter(caller.authorization, requests)

    def _recommend(self, message: bytes, deadline: float, request_id: str) -> Awaitable[api.RecommendResponse]:
        # The fast path: no coroutine of its own.
        return self._opened().recommend(decoded(api.RecommendRequest, message), deadline, request_id)

    async def _batch_recommend(self, message: bytes, deadline: float, _request_id: str) -> api.BatchRecommendResponse:
        service = self._opened()
        request = await service.turns.once(functools.partial(decoded, api.BatchRecommendRequest, message))
        return await service.batch_recommend(request, deadline)

    async def _get_model(self, message: bytes, _deadline: float, _request_id: str) -> api.GetModelResponse:
        return self._opened().get_model(decoded(api.GetModelRequest, message))

    async def _list_models(self, message: bytes, _deadline: float, _request_id: str) -> api.ListModelsResponse:
        return self._opened().list_models(decoded(api.ListModelsRequest, message))

    async def _stream_recommend(self, messages: Messages, send: Send) -> None:
        service = self._opened()
        if len(self._streams) >= self._most_streams:
            raise QuotaError(f"{self._most_streams} streams are open, as many as may be", _STREAM_RETRY_SECONDS)

        async def answer(message: bytes) -> api.StreamRecommendResponse:
            request = decoded(api.StreamRecommendRequest, message)
            timeout = request.timeout_ms / 1e3 if request.timeout_ms > 0 else self._default_timeout
            return await service.stream_recommend(request, time.monotonic() + timeout)

        stream = Stream(answer, send, most_open=self._most_open)
        self._streams.add(stream)
        try:
            if self._draining:
                stream.stop_reading()
            await stream.serve(messages)
        finally:
            self._streams.discard(stream)

    def _opened(self) -> RecommenderService:
        if self._service is None:
            raise UnavailableError("the model is being loaded; call another server or retry")
        return self._service


def methods_of(settings: NetworkSettings, calls: Calls, access: Access | None) -> Methods:
    """Build the RPCs that these settings describe."""
    return Methods(
        calls,
        default_timeout=settings.default_timeout_ms / 1e3,
        most_open=settings.max_stream_requests,
        most_streams=settings.max_streams,
        access=access,
        open_health=not settings.health_needs_token,
        reflection=settings.reflection,
    )
