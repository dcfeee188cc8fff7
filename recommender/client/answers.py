"""Answers, as callers in Python read them."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from recommender.recommend_api.v1 import recommend_api_pb2 as api


@dataclass(frozen=True, slots=True)
class Recommendations:
    """A server's answer: items, best first, with scores and keys, and how they were ranked."""

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
    matching_items: int | None = None
    """How many items the request's filter matches; None without a filter."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one request of many has no answer."""

    code: grpc.StatusCode
    message: str


def recommendations_of(response: api.RecommendResponse) -> Recommendations:
    """Read a reply."""
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
        response.matching_items if response.HasField("matching_items") else None,
    )


def outcome_of(result: api.RecommendResult | api.StreamRecommendResponse) -> Recommendations | Refusal:
    """Read how one request of many ended."""
    if result.WhichOneof("outcome") == "response":
        return recommendations_of(result.response)
    codes = {code.value[0]: code for code in grpc.StatusCode}
    return Refusal(codes.get(result.error.code, grpc.StatusCode.UNKNOWN), result.error.message)
