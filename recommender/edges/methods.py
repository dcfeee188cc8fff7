"""Every RPC, once for all edges: its token check, how its messages are parsed, and its service."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Awaitable, Iterator

from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.changes.service import CatalogueService
from recommender.api.messages import decoded
from recommender.api.metadata import SERVICE_NAME
from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls, ProtocolError
from recommender.edges.catalogue import SERVICE_NAME as CATALOGUE_NAME
from recommender.edges.catalogue import Catalogue
from recommender.edges.health import MOST_BYTES as PROBE_BYTES
from recommender.edges.health import SERVICE_NAME as HEALTH_NAME
from recommender.edges.health import Health
from recommender.edges.method import ANY_OTHER, Answer, Begin, Enter, Messages, Method, Send, Serve, Streaming, Unary
from recommender.edges.open_inference import SERVICE_NAME as INFERENCE_NAME
from recommender.edges.open_inference import OpenInference
from recommender.edges.reflection import Reflection
from recommender.edges.streams import Stream
from recommender.errors import QuotaError, UnavailableError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.security.access import Access, Scope
from recommender.settings.network import NetworkSettings

_OTHER = "_OTHER"
"""The metric label of calls of unknown paths: callers could name thousands."""
_LOADING = "the model is being loaded; call another server or retry"
_STREAM_RETRY_SECONDS = 1.0
"""When to retry a stream that was refused because too many are open."""


class Methods:
    """The RPCs of RecommenderService, health and reflection, and of `open_inference` and `catalogue`.

    Iterating gives each `Method`. Calls of these three services are noted in `calls`, and fail with UNAVAILABLE until
    `open`. A call or a stream's message without a deadline gets `default_timeout`, in seconds. A stream has at most
    `most_open` requests in flight; at most `most_streams` streams are open. With `access` every call needs a token,
    except health if `open_health`; its token may lack every scope for health and reflection only.
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
        open_inference: bool = True,
        catalogue: bool = False,
    ) -> None:
        self._calls = calls
        self._default_timeout = default_timeout
        self._most_open = most_open
        self._most_streams = most_streams
        self._access = access
        self._service: RecommenderService | None = None
        self._catalogue: CatalogueService | None = None
        self._streams: set[Stream] = set()
        self._draining = False
        self.health = Health(("", SERVICE_NAME))
        enter_health = None if open_health else self._enter()
        self._methods = [
            self._unary("Recommend", self._recommend),
            # The service charges each request of these two as it reads it.
            self._unary("BatchRecommend", self._batch_recommend, requests=0),
            self._streaming("StreamRecommend", self._stream_recommend),
            self._unary("GetModel", self._get_model),
            self._unary("ListModels", self._list_models),
            *self.health.methods(enter_health, default_timeout),
        ]
        names = [SERVICE_NAME, HEALTH_NAME]
        if open_inference:
            names.append(INFERENCE_NAME)
            self._methods += self._open_inference(enter_health or self.health.guests.enter)
        if catalogue:
            names.append(CATALOGUE_NAME)
            self._methods += [
                self._unary(name, answer, service=CATALOGUE_NAME, scope="catalogue")
                for name, answer in Catalogue(self._opened_catalogue).answers()
            ]
        if reflection:
            self._methods += Reflection(tuple(names)).methods(self._enter())
        self._methods.append(Streaming(path=ANY_OTHER, begin=self._begin(_OTHER), serve=_unimplemented))

    def __iter__(self) -> Iterator[Method]:
        return iter(self._methods)

    @property
    def keys(self) -> frozenset[str]:
        """Metadata keys that `Method.begin` reads; an edge may leave out all others."""
        return self._calls.keys

    def open(self, service: RecommenderService, catalogue: CatalogueService | None = None) -> None:
        """Answer with these services from now on."""
        self._service, self._catalogue = service, catalogue

    def drain(self) -> None:
        """Read no more from streams; each ends once everything read is answered."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.stop_reading()

    def _open_inference(self, enter_health: Enter) -> Iterator[Method]:
        inference = OpenInference(lambda: self._opened().open_inference, self.health)
        for name, answer in inference.probes():
            path = f"/{INFERENCE_NAME}/{name}"
            yield Unary(
                path=path, answer=answer, enter=enter_health, timeout=self._default_timeout, largest=PROBE_BYTES
            )
        for name, answer in inference.others():
            yield self._unary(name, answer, requests=0 if name == "ModelInfer" else 1, service=INFERENCE_NAME)
        yield self._streaming("ModelStreamInfer", self._model_stream_infer, service=INFERENCE_NAME)

    def _unary(
        self, name: str, answer: Answer, requests: int = 1, service: str = SERVICE_NAME, scope: Scope = "recommend"
    ) -> Method:
        return Unary(
            path=f"/{service}/{name}",
            begin=self._begin(f"{service}/{name}"),
            enter=self._enter(requests, scope),
            timeout=self._default_timeout,
            traced=True,
            answer=answer,
        )

    def _streaming(self, name: str, serve: Serve, service: str = SERVICE_NAME) -> Method:
        return Streaming(
            path=f"/{service}/{name}",
            begin=self._begin(f"{service}/{name}"),
            enter=self._enter(0, "recommend"),
            traced=True,
            serve=serve,
        )

    def _begin(self, method: str) -> Begin:
        return functools.partial(self._calls.begin, method)

    def _enter(self, requests: int = 1, scope: Scope | None = None) -> Enter | None:
        access = self._access
        return None if access is None else lambda caller: access.enter(caller.authorization, requests, scope)

    def _recommend(self, message: bytes, deadline: float, request_id: str) -> Awaitable[api.RecommendResponse]:
        # The fast path: no extra coroutine.
        return self._opened().recommend(decoded(api.RecommendRequest, message), deadline, request_id)

    def _batch_recommend(
        self, message: bytes, deadline: float, _request_id: str
    ) -> Awaitable[api.BatchRecommendResponse]:
        return self._opened().batch_recommend(message, deadline)

    async def _get_model(self, message: bytes, _deadline: float, _request_id: str) -> api.GetModelResponse:
        return self._opened().get_model(decoded(api.GetModelRequest, message))

    async def _list_models(self, message: bytes, _deadline: float, _request_id: str) -> api.ListModelsResponse:
        return self._opened().list_models(decoded(api.ListModelsRequest, message))

    async def _stream_recommend(self, messages: Messages, send: Send) -> None:
        service = self._opened()

        async def answer(message: bytes) -> api.StreamRecommendResponse:
            request = decoded(api.StreamRecommendRequest, message)
            timeout = request.timeout_ms / 1e3 if request.timeout_ms > 0 else self._default_timeout
            return await service.stream_recommend(request, time.monotonic() + timeout)

        await self._serve(Stream(answer, send, most_open=self._most_open), messages)

    async def _model_stream_infer(self, messages: Messages, send: Send) -> None:
        service = self._opened().open_inference

        def answer(message: bytes) -> Awaitable[Message]:
            return service.stream_infer(message, self._default_timeout)

        # Triton answers in order, and not every client sends ids.
        await self._serve(Stream(answer, send, most_open=self._most_open, in_order=True), messages)

    async def _serve(self, stream: Stream, messages: Messages) -> None:
        if len(self._streams) >= self._most_streams:
            raise QuotaError(f"{self._most_streams} streams are open, which is the limit", _STREAM_RETRY_SECONDS)
        self._streams.add(stream)
        try:
            if self._draining:
                stream.stop_reading()
            await stream.serve(messages)
        finally:
            self._streams.discard(stream)

    def _opened(self) -> RecommenderService:
        if self._service is None:
            raise UnavailableError(_LOADING)
        return self._service

    def _opened_catalogue(self) -> CatalogueService:
        if self._catalogue is None:
            raise UnavailableError(_LOADING)
        return self._catalogue


async def _unimplemented(_: Messages, __: Send) -> None:
    raise ProtocolError(code_pb2.UNIMPLEMENTED, "unknown method; reflection lists the methods")


def methods_of(settings: NetworkSettings, calls: Calls, access: Access | None, *, catalogue: bool = False) -> Methods:
    """Build the RPCs that these settings describe, and those of the `catalogue` if calls may change it."""
    return Methods(
        calls,
        default_timeout=settings.default_timeout_ms / 1e3,
        most_open=settings.max_stream_requests,
        most_streams=settings.max_streams,
        access=access,
        open_health=not settings.health_needs_token,
        reflection=settings.reflection,
        open_inference=settings.open_inference,
        catalogue=catalogue,
    )
