"""From errors to statuses: the one table of codes, the google.rpc.Status, and how a failed call ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from recommender.api.metadata import DETAILS_KEY, PUSHBACK_KEY, REQUEST_ID_KEY
from recommender.errors import (
    BacklogFullError,
    BusyError,
    CatalogueFullError,
    DeadlineError,
    InputsError,
    InvalidRequestError,
    PermissionDeniedError,
    QuotaError,
    RecommenderError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
)

INTERNAL_MESSAGE = "the server failed to answer; its log says why"
"""All that a caller learns of our faults."""
_MOST_CHARACTERS = 2000
"""A status travels in headers, of which clients take 8 KiB."""

CODES: dict[type[RecommenderError], int] = {
    InvalidRequestError: code_pb2.INVALID_ARGUMENT,
    InputsError: code_pb2.INVALID_ARGUMENT,
    UnknownModelError: code_pb2.NOT_FOUND,
    UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    PermissionDeniedError: code_pb2.PERMISSION_DENIED,
    CatalogueFullError: code_pb2.RESOURCE_EXHAUSTED,
    BacklogFullError: code_pb2.RESOURCE_EXHAUSTED,
    QuotaError: code_pb2.RESOURCE_EXHAUSTED,
    DeadlineError: code_pb2.DEADLINE_EXCEEDED,
    UnavailableError: code_pb2.UNAVAILABLE,
}
"""The code of each error that a caller can act on; every other error is INTERNAL."""

log = structlog.get_logger(__name__)


def status_of(error: Exception) -> status_pb2.Status:
    """The status that an error ends a request with.

    A request at fault has a BadRequest that names each field, a limit that is reached a RetryInfo. The message of an
    error that is our fault is a fixed sentence.
    """
    code = CODES.get(type(error)) if isinstance(error, RecommenderError) else None
    if code is None:
        return status_pb2.Status(code=code_pb2.INTERNAL, message=INTERNAL_MESSAGE)
    status = status_pb2.Status(code=code, message=str(error)[:_MOST_CHARACTERS])
    if isinstance(error, InvalidRequestError):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
            for violation in error.violations
        ]
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
    elif isinstance(error, BusyError):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


@dataclass(frozen=True, slots=True)
class FailedCall:
    """How a failed call ends: a gRPC status code, its message, and the trailing metadata."""

    code: int
    message: str
    metadata: tuple[tuple[str, str | bytes], ...]


def refusal(error: Exception, request_id: str) -> FailedCall:
    """The status for an error, with details that a client can act on; server errors are logged."""
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


def _packed(detail: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
