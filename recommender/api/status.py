"""The one table from errors to statuses, and the google.rpc.Status that a client can act on."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from recommender.errors import (
    BacklogFullError,
    BusyError,
    DeadlineError,
    InvalidRequestError,
    QuotaError,
    RecommenderError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
)

INTERNAL_MESSAGE = "the server failed to answer; its log says why"
"""All that a caller learns of our faults."""

CODES: dict[type[RecommenderError], int] = {
    InvalidRequestError: code_pb2.INVALID_ARGUMENT,
    UnknownModelError: code_pb2.NOT_FOUND,
    UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    BacklogFullError: code_pb2.RESOURCE_EXHAUSTED,
    QuotaError: code_pb2.RESOURCE_EXHAUSTED,
    DeadlineError: code_pb2.DEADLINE_EXCEEDED,
    UnavailableError: code_pb2.UNAVAILABLE,
}
"""The code of each error that a caller can act on; every other error is INTERNAL."""


def status_of(error: Exception) -> status_pb2.Status:
    """The status that an error ends a request with.

    A request at fault has a BadRequest that names each field, a limit that is reached a RetryInfo. The message of an
    error that is our fault is a fixed sentence.
    """
    code = CODES.get(type(error)) if isinstance(error, RecommenderError) else None
    if code is None:
        return status_pb2.Status(code=code_pb2.INTERNAL, message=INTERNAL_MESSAGE)
    status = status_pb2.Status(code=code, message=str(error))
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


def _packed(detail: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
