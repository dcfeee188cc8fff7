"""Metadata of calls: the service's name, keys, request ids; and how large replies may be."""

from __future__ import annotations

from random import getrandbits

from recommender.recommend_api.v1 import recommend_api_pb2 as api

PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"
DETAILS_KEY = "grpc-status-details-bin"
SERVICE_NAME = api.DESCRIPTOR.services_by_name["RecommenderService"].full_name

MOST_REPLY_BYTES = 1 << 25
"""A call whose reply could be larger is refused before anything is ranked."""

_LONGEST_REQUEST_ID = 128


def request_id_of(sent: str | None) -> str:
    """The caller's own request id if it is short and printable ASCII; otherwise a new random one."""
    if sent and len(sent) <= _LONGEST_REQUEST_ID and sent.isascii() and sent.isprintable():
        return sent
    return getrandbits(64).to_bytes(8, "big").hex()  # in half the time of a format
