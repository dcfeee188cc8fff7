"""What every edge says on the wire, whatever carries it: keys of metadata, ids of requests, how errors are told."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2

from recommender.api.status import status_of
from recommender.errors import BusyError, DeadlineError, InvalidRequestError, UnavailableError, Violation
from recommender.recommend_api.v1 import recommend_api_pb2 as api

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"
DETAILS_KEY = "grpc-status-details-bin"
SERVICE_NAME = api.DESCRIPTOR.services_by_name["RecommenderService"].full_name

_LONGEST_REQUEST_ID = 128

M = TypeVar("M", bound=Message)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FailedCall:
    """How a call that failed ends: a gRPC status code, its message, and the trailing metadata beside them."""

    code: int
    message: str
    metadata: tuple[tuple[str, str | bytes], ...]


def refusal(error: Exception, request_id: str) -> FailedCall:
    """What a caller is told of an error, with details a client can act on; what is our fault is logged."""
    status = status_of(error)
    metadata: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, request_id)]
    if status.code == code_pb2.INTERNAL:
        log.error("request failed", request_id=request_id, exc_info=error)
    elif isinstance(error, BusyError | DeadlineError | UnavailableError):
        log.info("refused", request_id=request_id, status=code_pb2.Code.Name(status.code), reason=status.message)
    else:  # what is wrong with a request may name what its user has seen
        log.debug("refused", request_id=request_id, status=code_pb2.Code.Name(status.code), reason=status.message)
    if isinstance(error, BusyError):
        metadata.append((PUSHBACK_KEY, str(math.ceil(error.retry_after * 1e3))))
    if status.details:
        metadata.append((DETAILS_KEY, status.SerializeToString()))
    return FailedCall(status.code, status.message, tuple(metadata))


def decoded(kind: type[M], message: bytes) -> M:
    """The message that these bytes are. Raises InvalidRequestError if they are none."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequestError(
            Violation("", f"the message is not a {name}; generate the client from the proto")
        ) from error


def request_id_of(sent: str | None) -> str:
    """What the caller calls this call, if that is short and printable; else a name made for it."""
    if sent and len(sent) <= _LONGEST_REQUEST_ID and sent.isascii() and sent.isprintable():
        return sent
    return f"{random.getrandbits(64):016x}"
