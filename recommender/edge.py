"""The grpc.aio edge: deadlines and messages in, replies and statuses out. All of gRPC's manners live here."""

from __future__ import annotations

import math
import time
from typing import NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from recommender.errors import (
    BacklogFullError,
    DeadlineError,
    InvalidRequestError,
    RecommenderError,
    UnavailableError,
    Violation,
)
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.service import RecommenderService

INTERNAL_MESSAGE = "the server failed to answer; its log says why"
"""All that a caller learns of our faults."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
SERVICE_NAME = api.DESCRIPTOR.services_by_name["RecommenderService"].full_name

STATUS: dict[type[RecommenderError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    BacklogFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
"""The status of each error that a caller can act on; every other error is INTERNAL."""

log = structlog.get_logger(__name__)


Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


class Edge:
    """The handlers around a RecommenderService; UNAVAILABLE until `open` has given it one.

    `default_timeout` (seconds) stands in where the caller sets no deadline. Messages are decoded here
    and not by grpc.aio, which answers UNKNOWN with a Python error to a message it cannot decode.
    """

    def __init__(self, *, default_timeout: float = math.inf) -> None:
        self._service: RecommenderService | None = None
        self._default_timeout = default_timeout

    def open(self, service: RecommenderService) -> None:
        """Answer with this service from now on."""
        self._service = service

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer calls to RecommenderService on this server."""
        handlers = {"Recommend": grpc.unary_unary_rpc_method_handler(self._recommend)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _recommend(self, message: bytes, context: Context) -> bytes:
        try:
            request = _decoded(message)
            response = await self._opened().recommend(request, self._deadline(context.time_remaining()))
            return response.SerializeToString()
        except Exception as error:  # noqa: BLE001 (whatever went wrong, the caller gets a status)
            await refuse(context, error)

    def _opened(self) -> RecommenderService:
        if self._service is None:
            raise UnavailableError("the model is being loaded; call another server or retry")
        return self._service

    # The stubs of grpc say `float`; without a deadline it is None.
    def _deadline(self, remaining: float | None) -> float:
        return time.monotonic() + (self._default_timeout if remaining is None else remaining)


def _decoded(message: bytes) -> api.RecommendRequest:
    try:
        return api.RecommendRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequestError(
            Violation("", "the message is not a recommend_api.v1.RecommendRequest; generate the client from the proto")
        ) from error


async def refuse(context: Context, error: Exception) -> NoReturn:
    """End the call with the status that the error stands for, with details a client can act on."""
    code = STATUS.get(type(error)) if isinstance(error, RecommenderError) else None
    if code is None:
        log.error("request failed", exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE)
    if isinstance(error, InvalidRequestError):
        await context.abort_with_status(rpc_status.to_status(bad_request(error)))
    if isinstance(error, BacklogFullError):
        pushback = str(math.ceil(error.retry_after * 1e3))
        await context.abort(code, str(error), ((PUSHBACK_KEY, pushback),))
    await context.abort(code, str(error))


def bad_request(error: InvalidRequestError) -> status_pb2.Status:
    """The google.rpc.Status of a request at fault, with a BadRequest that names each field."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
        for violation in error.violations
    ]
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.BadRequest(field_violations=violations))
    return status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(error), details=[detail])
