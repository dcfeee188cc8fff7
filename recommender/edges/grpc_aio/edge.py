"""The grpc.aio edge: deadlines and messages in, replies and statuses out. All of gRPC's manners live here."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2

from recommender.api.messages import decoded
from recommender.api.metadata import REQUEST_ID_KEY, SERVICE_NAME, request_id_of
from recommender.api.service import RecommenderService
from recommender.api.status import refusal
from recommender.edges.calls import Call, Calls
from recommender.edges.streams import Stream
from recommender.errors import QuotaError, RecommenderError, UnavailableError
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.security.access import Access, Visit, authorization_of

_RECOMMEND, _BATCH_RECOMMEND, _STREAM_RECOMMEND, _GET_MODEL, _LIST_MODELS = (
    f"{SERVICE_NAME}/{name}" for name in ("Recommend", "BatchRecommend", "StreamRecommend", "GetModel", "ListModels")
)
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_STREAM_RETRY = 1.0
"""Seconds after which another stream may be tried where as many are open as may be."""

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
M = TypeVar("M")
R = TypeVar("R")
Handler: TypeAlias = Callable[[M, Context], Awaitable[R]]


class GrpcEdge:
    """The handlers around a RecommenderService; UNAVAILABLE until `open` has given it one.

    `default_timeout` (seconds) stands in where the caller sets no deadline, `most_open` is how many requests of one
    stream are open at once, `most_streams` how many streams are. Messages are decoded here and not by grpc.aio,
    which answers UNKNOWN with a Python error to a message it cannot decode. Every call is noted in `rpcs`. With
    `access` every call needs a token.
    """

    def __init__(
        self,
        *,
        default_timeout: float = math.inf,
        most_open: int = 128,
        most_streams: int = 1024,
        rpcs: Calls | None = None,
        access: Access | None = None,
    ) -> None:
        self._rpcs = Calls() if rpcs is None else rpcs
        self._service: RecommenderService | None = None
        self._default_timeout = default_timeout
        self._most_open = most_open
        self._most_streams = most_streams
        self._access = access
        self._streams: set[Stream] = set()
        self._draining = False

    def open(self, service: RecommenderService) -> None:
        """Answer with this service from now on."""
        self._service = service

    def drain(self) -> None:
        """Read no more from open streams; each ends when what it has read is answered."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.stop_reading()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer calls to RecommenderService on this server."""
        unary, streaming = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        # Of what holds many requests, each is charged as it is read: see the service.
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Recommend": unary(self._guarded(_RECOMMEND, self._recommend)),
            "BatchRecommend": unary(self._guarded(_BATCH_RECOMMEND, self._batch_recommend, 0)),
            "StreamRecommend": streaming(self._guarded(_STREAM_RECOMMEND, self._stream_recommend, 0)),
            "GetModel": unary(self._guarded(_GET_MODEL, self._get_model)),
            "ListModels": unary(self._guarded(_LIST_MODELS, self._list_models)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _recommend(self, message: bytes, context: Context) -> bytes:
        rpc = self._begin(_RECOMMEND, context)
        try:
            request = decoded(api.RecommendRequest, message)
            deadline = self._deadline(context.time_remaining())
            response = await self._opened().recommend(request, deadline, rpc.request_id)
            reply = response.SerializeToString()
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await refuse(context, error, rpc)
        except asyncio.CancelledError:
            rpc.end(_left(context))
            raise
        rpc.end(code_pb2.OK)
        return reply

    async def _batch_recommend(self, message: bytes, context: Context) -> bytes:
        async def answer() -> Message:
            request = decoded(api.BatchRecommendRequest, message)
            return await self._opened().batch_recommend(request, self._deadline(context.time_remaining()))

        return await self._answered(_BATCH_RECOMMEND, context, answer)

    async def _get_model(self, message: bytes, context: Context) -> bytes:
        async def answer() -> Message:
            return self._opened().get_model(decoded(api.GetModelRequest, message))

        return await self._answered(_GET_MODEL, context, answer)

    async def _list_models(self, message: bytes, context: Context) -> bytes:
        async def answer() -> Message:
            return self._opened().list_models(decoded(api.ListModelsRequest, message))

        return await self._answered(_LIST_MODELS, context, answer)

    async def _stream_recommend(self, _: AsyncIterator[bytes], context: Context) -> None:
        rpc = self._begin(_STREAM_RECOMMEND, context)
        try:
            service = self._opened()
            self._check_room()

            async def requests() -> AsyncIterator[api.StreamRecommendRequest]:
                while isinstance(message := await context.read(), bytes):  # else it is the end
                    yield decoded(api.StreamRecommendRequest, message)

            async def answer(request: api.StreamRecommendRequest) -> api.StreamRecommendResponse:
                timeout = request.timeout_ms / 1e3 if request.timeout_ms > 0 else self._default_timeout
                return await service.stream_recommend(request, time.monotonic() + timeout)

            async def send(response: api.StreamRecommendResponse) -> None:
                await context.write(response.SerializeToString())

            stream = Stream(answer, send, most_open=self._most_open)
            self._streams.add(stream)
            try:
                if self._draining:
                    stream.stop_reading()
                await stream.serve(requests())
            finally:
                self._streams.discard(stream)
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await refuse(context, error, rpc)
        except asyncio.CancelledError:
            rpc.end(_left(context))
            raise
        rpc.end(code_pb2.OK)

    async def _answered(self, method: str, context: Context, answer: Callable[[], Awaitable[Message]]) -> bytes:
        rpc = self._begin(method, context)
        try:
            reply = (await answer()).SerializeToString()
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await refuse(context, error, rpc)
        except asyncio.CancelledError:
            rpc.end(_left(context))
            raise
        rpc.end(code_pb2.OK)
        return reply

    def _guarded(self, method: str, handler: Handler[M, R], requests: int = 1) -> Handler[M, R]:
        """The handler behind a look at the caller's token; without `access` the handler itself, which costs nothing."""
        access = self._access
        if access is None:
            return handler

        async def after_a_look(message: M, context: Context) -> R:
            try:
                visit = access.enter(authorization_of(context.invocation_metadata() or ()), requests)
            except RecommenderError as error:
                await refuse(context, error, self._begin(method, context))
            with visit:
                return await handler(message, context)

        return after_a_look

    def _begin(self, method: str, context: Context) -> Call:
        rpc = self._rpcs.begin(method, context.invocation_metadata() or ())
        context.set_trailing_metadata(((REQUEST_ID_KEY, rpc.request_id),))
        return rpc

    def _check_room(self) -> None:
        if len(self._streams) >= self._most_streams:
            raise QuotaError(f"{self._most_streams} streams are open, as many as may be", _STREAM_RETRY)

    def _opened(self) -> RecommenderService:
        if self._service is None:
            raise UnavailableError("the model is being loaded; call another server or retry")
        return self._service

    # The stubs of grpc say `float`; without a deadline it is None.
    def _deadline(self, remaining: float | None) -> float:
        return time.monotonic() + (self._default_timeout if remaining is None else remaining)


async def enter(access: Access, context: Context) -> Visit:
    """Let the caller of another service in, or end the call with the status that says why not."""
    try:
        return access.enter(authorization_of(context.invocation_metadata() or ()))
    except RecommenderError as error:
        refused = refusal(error, request_id_of(None))
        await context.abort(_GRPC_CODES[refused.code], refused.message, refused.metadata)


async def refuse(context: Context, error: Exception, rpc: Call) -> NoReturn:
    """End the call with the status that the error stands for, with details a client can act on."""
    refused = refusal(error, rpc.request_id)
    rpc.end(refused.code)
    await context.abort(_GRPC_CODES[refused.code], refused.message, refused.metadata)


def _left(context: Context) -> int:
    """The status of a call that gRPC has ended: its caller left, or its deadline came."""
    remaining: float | None = context.time_remaining()
    late = remaining is not None and remaining <= 0
    return int(code_pb2.DEADLINE_EXCEEDED if late else code_pb2.CANCELLED)
