"""What a status says beyond its code."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2

from recommender.api.metadata import DETAILS_KEY


def status_of_call(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status that a failed call carries."""
    (packed,) = (value for key, value in error.trailing_metadata() if key == DETAILS_KEY)
    assert isinstance(packed, bytes)
    return status_pb2.Status.FromString(packed)


def violations_of(status: status_pb2.Status) -> dict[str, str]:
    """The field violations of a status, descriptions by field."""
    (detail,) = status.details
    bad_request = error_details_pb2.BadRequest()
    assert detail.Unpack(bad_request)
    return {violation.field: violation.description for violation in bad_request.field_violations}
