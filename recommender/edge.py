"""The grpc.aio edge: deadlines and messages in, replies and statuses out. All of gRPC's manners live here."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2

from recommender.errors import BacklogFullError, InvalidRequestError, UnavailableError, Violation
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.service import RecommenderService
from recommender.status import status_of
from recommender.stream import Stream

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"
DETAILS_KEY = "grpc-status-details-bin"
SERVICE_NAME = api.DESCRIPTOR.services_by_name["RecommenderService"].full_name

_LONGEST_REQUEST_ID = 128
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
M = TypeVar("M", bound=Message)

log = structlog.get_logger(__name__)


class Edge:
    """The handlers around a RecommenderService; UNAVAILABLE until `open` has given it one.

    `default_timeout` (seconds) stands in where the caller sets no deadline, `most_open` is how many requests of one
    stream are open at once. Messages are decoded here and not by grpc.aio, which answers UNKNOWN with a Python
    error to a message it cannot decode.
    """

    def __init__(self, *, default_timeout: float = math.inf, most_open: int = 128) -> None:
        self._service: RecommenderService | None = None
        self._default_timeout = default_timeout
        self._most_open = most_open
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
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Recommend": grpc.unary_unary_rpc_method_handler(self._recommend),
            "BatchRecommend": grpc.unary_unary_rpc_method_handler(self._batch_recommend),
            "StreamRecommend": grpc.stream_stream_rpc_method_handler(self._stream_recommend),
            "GetModel": grpc.unary_unary_rpc_method_handler(self._get_model),
            "ListModels": grpc.unary_unary_rpc_method_handler(self._list_models),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _recommend(self, message: bytes, context: Context) -> bytes:
        request_id = _request_id(context)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        try:
            request = _decoded(api.RecommendRequest, message)
            deadline = self._deadline(context.time_remaining())
            response = await self._opened().recommend(request, deadline, request_id)
            return response.SerializeToString()
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await refuse(context, error, request_id)

    async def _batch_recommend(self, message: bytes, context: Context) -> bytes:
        async def answer() -> Message:
            request = _decoded(api.BatchRecommendRequest, message)
            return await self._opened().batch_recommend(request, self._deadline(context.time_remaining()))

        return await _answered(context, answer)

    async def _get_model(self, message: bytes, context: Context) -> bytes:
        async def answer() -> Message:
            return self._opened().get_model(_decoded(api.GetModelRequest, message))

        return await _answered(context, answer)

    async def _list_models(self, message: bytes, context: Context) -> bytes:
        async def answer() -> Message:
            return self._opened().list_models(_decoded(api.ListModelsRequest, message))

        return await _answered(context, answer)

    async def _stream_recommend(self, _: AsyncIterator[bytes], context: Context) -> None:
        request_id = _request_id(context)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        try:
            service = self._opened()

            async def requests() -> AsyncIterator[api.StreamRecommendRequest]:
                while isinstance(message := await context.read(), bytes):  # else it is the end
                    yield _decoded(api.StreamRecommendRequest, message)

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
            await refuse(context, error, request_id)

    def _opened(self) -> RecommenderService:
        if self._service is None:
            raise UnavailableError("the model is being loaded; call another server or retry")
        return self._service

    # The stubs of grpc say `float`; without a deadline it is None.
    def _deadline(self, remaining: float | None) -> float:
        return time.monotonic() + (self._default_timeout if remaining is None else remaining)


async def _answered(context: Context, answer: Callable[[], Awaitable[Message]]) -> bytes:
    request_id = _request_id(context)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    try:
        return (await answer()).SerializeToString()
    except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
        await refuse(context, error, request_id)


async def refuse(context: Context, error: Exception, request_id: str) -> NoReturn:
    """End the call with the status that the error stands for, with details a client can act on."""
    status = status_of(error)
    metadata = [(REQUEST_ID_KEY, request_id)]
    if status.code == code_pb2.INTERNAL:
        log.error("request failed", request_id=request_id, exc_info=error)
    if isinstance(error, BacklogFullError):
        metadata.append((PUSHBACK_KEY, str(math.ceil(error.retry_after * 1e3))))
    details = ((DETAILS_KEY, status.SerializeToString()),) if status.details else ()
    await context.abort(_GRPC_CODES[status.code], status.message, (*metadata, *details))


def _decoded(kind: type[M], message: bytes) -> M:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequestError(
            Violation("", f"the message is not a {name}; generate the client from the proto")
        ) from error


def _request_id(context: Context) -> str:
    """What the caller calls this call, if that is short and printable; else a name made for it."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and 0 < len(value) <= _LONGEST_REQUEST_ID:
            if value.isascii() and value.isprintable():
                return value
            break
    return secrets.token_hex(8)
