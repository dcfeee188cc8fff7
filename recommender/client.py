"""Clients in Python, asynchronous and synchronous: one import, typed, a deadline on every call.

Both retry what is safe to retry: UNAVAILABLE by gRPC's own service config, and RESOURCE_EXHAUSTED only if
the server says when to come back, since gRPC uses that status for oversize messages too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypedDict, TypeVar, Unpack

import grpc

from recommender.api.metadata import MOST_REPLY_BYTES
from recommender.edges.address import is_this_machine
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.recommend_api.v1 import recommend_api_pb2_grpc as api_grpc

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Request: TypeAlias = api.RecommendRequest
"""One request of a batch call or a stream."""

_REQUEST_ID_KEY = "x-request-id"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_MOST_ATTEMPTS = 4
SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "recommend_api.v1.RecommenderService"}],
                "retryPolicy": {
                    "maxAttempts": _MOST_ATTEMPTS,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
    }
)
"""What any gRPC client of this service should be configured with."""

_OPTIONS: Final = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    # Load balancers drop connections that are silent for a minute or so.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC's own limit of 4 MiB is less than a server may send.
    ("grpc.max_receive_message_length", 2 * MOST_REPLY_BYTES),
    # Else clients of one process share one connection, and with it one worker of several.
    ("grpc.use_local_subchannel_pool", 1),
)

# Seconds: gRPC takes a deadline centuries away for one that has passed, and the proto limits that of a stream.
_LONGEST_TIMEOUT, _LONGEST_STREAM_TIMEOUT = 1e8, 3600.0

A = TypeVar("A")
R = TypeVar("R")


class Options(TypedDict, total=False):
    """What a request may hold beside its history, as the proto describes it."""

    limit: int
    item_keys: Sequence[str]
    excluded_item_ids: Sequence[int]
    excluded_item_keys: Sequence[str]
    exclude_history: bool
    candidate_item_ids: Sequence[int]
    candidate_item_keys: Sequence[str]
    min_score: float
    model: str
    routing_key: str
    user_key: str
    user_id: int


@dataclass(frozen=True, slots=True)
class Recommendations:
    """A server's answer: items, best first, with their scores and keys, and how they came about."""

    item_ids: tuple[int, ...]
    scores: tuple[float, ...]
    model_version: str
    item_keys: tuple[str, ...] = ()
    unknown_item_ids: tuple[int, ...] = ()
    unknown_item_keys: tuple[str, ...] = ()
    is_fallback: bool = False
    request_id: str = field(default="", compare=False)
    is_user_alone: bool = False
    unknown_user: bool = False
    ignored_inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one request of many has no answer."""

    code: grpc.StatusCode
    message: str


class Client:
    """Asks one server, at `target` (`host:port`), over a connection of its own; an async context manager.

    Without `credentials` the channel is plaintext; `token` is sent with every call. Calls raise
    grpc.aio.AioRpcError with the server's status. `timeout` (seconds, or inf) covers a call with all its retries.

    If OpenTelemetry's tracer provider is set by then, each attempt is a span, and the server continues its trace.
    """

    def __init__(
        self, target: str, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None
    ) -> None:
        self._authorization = _authorization(token)
        self._channel = (
            grpc.aio.insecure_channel(target, _options(target), interceptors=_aio_interceptors())
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, _options(target), interceptors=_aio_interceptors())
        )
        self._stub: api_grpc.RecommenderServiceAsyncStub = api_grpc.RecommenderServiceStub(self._channel)

    async def recommend(
        self, item_ids: Sequence[int] = (), *, timeout: float, request_id: str = "", **options: Unpack[Options]
    ) -> Recommendations:
        """Recommendations for a history, oldest item first; the server's log and traces name the call `request_id`."""
        request = api.RecommendRequest(item_ids=item_ids, **options)
        return _recommendations(await self._call(self._stub.Recommend, request, timeout, request_id))

    async def recommend_many(self, requests: Iterable[Request], *, timeout: float) -> list[Recommendations | Refusal]:
        """Answers to many requests in one call, in their order, each with an outcome of its own."""
        request = api.BatchRecommendRequest(requests=requests)
        response = await self._call(self._stub.BatchRecommend, request, timeout)
        return [_outcome(result) for result in response.results]

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
            yield reply.correlation_id, _outcome(reply)

    async def get_model(self, model: str = "", *, timeout: float) -> api.Model:
        """The description of a model; of the one being served, if none is named."""
        return (await self._call(self._stub.GetModel, api.GetModelRequest(model=model), timeout)).model

    async def list_models(self, *, timeout: float) -> list[api.Model]:
        """The descriptions of all models that are served."""
        return list((await self._call(self._stub.ListModels, api.ListModelsRequest(), timeout)).models)

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
        metadata = (*_metadata(request_id), *self._authorization)
        for attempt in itertools.count(1):
            try:
                return await method(request, timeout=_left(deadline), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                pause = _pause(error.code(), error.trailing_metadata(), attempt, deadline)
                if pause is None:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class SyncClient:
    """The same for code without an event loop; a context manager. Calls raise grpc.RpcError."""

    def __init__(
        self, target: str, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None
    ) -> None:
        self._authorization = _authorization(token)
        self._channel = _traced(
            grpc.insecure_channel(target, _options(target))
            if credentials is None
            else grpc.secure_channel(target, credentials, _options(target))
        )
        self._stub = api_grpc.RecommenderServiceStub(self._channel)

    def recommend(
        self, item_ids: Sequence[int] = (), *, timeout: float, request_id: str = "", **options: Unpack[Options]
    ) -> Recommendations:
        """Recommendations for a history, oldest item first; the server's log and traces name the call `request_id`."""
        request = api.RecommendRequest(item_ids=item_ids, **options)
        return _recommendations(self._call(self._stub.Recommend, request, timeout, request_id))

    def recommend_many(self, requests: Iterable[Request], *, timeout: float) -> list[Recommendations | Refusal]:
        """Answers to many requests in one call, in their order, each with an outcome of its own."""
        response = self._call(self._stub.BatchRecommend, api.BatchRecommendRequest(requests=requests), timeout)
        return [_outcome(result) for result in response.results]

    def get_model(self, model: str = "", *, timeout: float) -> api.Model:
        """The description of a model; of the one being served, if none is named."""
        return self._call(self._stub.GetModel, api.GetModelRequest(model=model), timeout).model

    def list_models(self, *, timeout: float) -> list[api.Model]:
        """The descriptions of all models that are served."""
        return list(self._call(self._stub.ListModels, api.ListModelsRequest(), timeout).models)

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., R], request: A, timeout: float, request_id: str = "") -> R:
        deadline = time.monotonic() + timeout
        metadata = (*_metadata(request_id), *self._authorization)
        for attempt in itertools.count(1):
            try:
                return method(request, timeout=_left(deadline), metadata=metadata)
            except grpc.RpcError as error:
                call: Any = error  # what a failed call raises is the call as well; the stubs do not say so
                pause = _pause(call.code(), call.trailing_metadata(), attempt, deadline)
                if pause is None:
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def _options(target: str) -> tuple[tuple[str, str | int], ...]:
    return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_this_machine(target) else _OPTIONS


def _left(deadline: float) -> float | None:
    return None if (left := deadline - time.monotonic()) > _LONGEST_TIMEOUT else max(left, 0.0)


def _authorization(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _metadata(request_id: str) -> tuple[tuple[str, str], ...]:
    """The id under which all attempts of a call are one to whoever reads the server's log; made where none is given."""
    return ((_REQUEST_ID_KEY, request_id or secrets.token_hex(8)),)


def _pause(
    code: grpc.StatusCode, metadata: Iterable[tuple[str, str | bytes]] | None, attempt: int, deadline: float
) -> float | None:
    """Seconds until another attempt is welcome; None if it is not, or would come too late."""
    if code is not grpc.StatusCode.RESOURCE_EXHAUSTED or attempt >= _MOST_ATTEMPTS:
        return None
    told = dict(metadata or ()).get(_PUSHBACK_KEY)
    if not isinstance(told, str) or not told.isdecimal():
        return None
    pause = int(told) / 1e3
    return pause if time.monotonic() + pause < deadline else None


def _recommendations(response: api.RecommendResponse) -> Recommendations:
    return Recommendations(
        tuple(response.item_ids),
        tuple(response.scores),
        response.model_version,
        tuple(response.item_keys),
        tuple(response.unknown_item_ids),
        tuple(response.unknown_item_keys),
        response.source == api.SOURCE_FALLBACK,
        response.request_id,
        response.source == api.SOURCE_USER,
        response.unknown_user,
        tuple(response.ignored_inputs),
    )


def _outcome(result: api.RecommendResult | api.StreamRecommendResponse) -> Recommendations | Refusal:
    if result.WhichOneof("outcome") == "response":
        return _recommendations(result.response)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    return Refusal(codes.get(result.error.code, grpc.StatusCode.UNKNOWN), result.error.message)


def _instrumentation(instrumentor: str) -> tuple[ModuleType, TracerProvider] | None:
    """GRPC's instrumentation if a tracer provider is set, and not all of gRPC is instrumented anyway."""
    if "opentelemetry.trace" not in sys.modules:  # else it would be imported for nothing
        return None
    from opentelemetry import trace  # noqa: PLC0415

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return None
    from opentelemetry.instrumentation import grpc as instrumentation  # noqa: PLC0415 (slow to import)

    if getattr(instrumentation, instrumentor)().is_instrumented_by_opentelemetry:
        return None
    from recommender.observability.client_spans import StableNames  # noqa: PLC0415 (imports the API)

    return instrumentation, StableNames(provider)


def _aio_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    found = _instrumentation("GrpcAioInstrumentorClient")
    if found is None:
        return ()
    instrumentation, provider = found
    made: Sequence[grpc.aio.ClientInterceptor] = instrumentation.aio_client_interceptors(provider)
    return made


def _traced(channel: grpc.Channel) -> grpc.Channel:
    found = _instrumentation("GrpcInstrumentorClient")
    if found is None:
        return channel
    instrumentation, provider = found
    made: grpc.Channel = instrumentation.intercept_channel(channel, instrumentation.client_interceptor(provider))
    return made
