"""Write replies: an answer, an error among many outcomes, the description of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import structlog
from google.protobuf import timestamp_pb2
from google.rpc import code_pb2, status_pb2

from recommender.api.catalogue import keys_of
from recommender.api.queries import Asked
from recommender.api.status import status_of
from recommender.models.follower import Refusal, SourceFailure
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.answering import NO_REMARKS, Answer
from recommender.routing.router import Router
from recommender.settings.masking import masked

_MODEL, _FALLBACK, _USER = api.SOURCE_MODEL, api.SOURCE_FALLBACK, api.SOURCE_USER
_FEATURE_TYPES = {
    "int64": api.FEATURE_TYPE_INT64,
    "float": api.FEATURE_TYPE_FLOAT,
    "bool": api.FEATURE_TYPE_BOOL,
    "string": api.FEATURE_TYPE_STRING,
}
_PART_KEYS = 128
"""So many are looked up in 0.2 ms."""
_LOG_SAYS_WHY = "; the server's log says why"
_SOURCE_FAILURES: Mapping[SourceFailure, str] = {
    "SOURCE_TIMEOUT": "the source of the model did not answer in time",
    "SOURCE_UNREACHABLE": "the source of the model cannot be asked",
    "NO_VERSION": "the source of the model has no version to serve",
}
_REFUSALS: Mapping[Refusal, str] = {
    "VERSION_REFUSED": "the version did not pass its checks",
    "VERSION_FAILED": "the version could not be loaded",
    "ROLLED_BACK": "the version was a candidate and was rolled back",
}
"""All that callers learn of these failures: a fixed sentence after its code."""

log = structlog.get_logger(__name__)


def has_many_keys(answer: Answer) -> bool:
    """Whether the keys of an answer take so long to look up that it must be written in parts."""
    return len(answer.ranking.item_ids) > _PART_KEYS and answer.version.vocabulary is not None


def write_in_parts(asked: Asked, answer: Answer, reply: api.RecommendResponse) -> Iterator[None]:
    """Do what `write` does, `_PART_KEYS` keys at a time, and yield after each part."""
    item_ids = answer.ranking.item_ids
    keys: list[str] = []
    for start in range(0, len(item_ids), _PART_KEYS):
        keys += keys_of(answer.version, item_ids[start : start + _PART_KEYS], answer.remarks.new_items)
        yield
    write(asked, answer, reply, keys)


def write(asked: Asked, answer: Answer, reply: api.RecommendResponse, keys: Sequence[str] | None = None) -> None:
    """Write an answer into an empty reply; items that score below the request's `min_score` are left out.

    `keys` are those of all its items, if they were looked up.
    """
    version, remarks = answer.version, answer.remarks
    item_ids, scores = answer.ranking
    least = asked.options.min_score
    if least is not None and scores and scores[-1] < least:
        kept = sum(score >= least for score in scores)
        item_ids, scores = item_ids[:kept], scores[:kept]
    if asked.request_id:  # rows of a batch call have none, and to set a string takes long
        reply.request_id = asked.request_id
    reply.model_version = version.label
    reply.source = _MODEL
    reply.item_ids.extend(item_ids)
    reply.scores.extend(scores)
    if version.vocabulary is not None:
        found = keys_of(version, item_ids, remarks.new_items) if keys is None else keys[: len(item_ids)]
        reply.item_keys.extend(found)
    if remarks is not NO_REMARKS:
        reply.unknown_item_ids.extend(remarks.unknown_item_ids)
        reply.unknown_item_keys.extend(remarks.unknown_item_keys)
        reply.unknown_user = remarks.unknown_user
        reply.ignored_inputs.extend(remarks.ignored_inputs)
        if remarks.matching_items is not None:
            reply.matching_items = remarks.matching_items
        if remarks.is_fallback:
            reply.source = _FALLBACK
        elif remarks.is_user_alone:
            reply.source = _USER


def failure(error: Exception) -> status_pb2.Status:
    """The status of one request among many. A server error is logged, because no failed call would report it."""
    status = status_of(error)
    if status.code == code_pb2.INTERNAL:
        log.error("request failed", exc_info=error)
    return status


def description(version: Version, router: Router) -> api.Model:
    """Describe a version, its part on this server and how its source is followed."""
    model = version.model
    loaded_at = timestamp_pb2.Timestamp()
    loaded_at.FromDatetime(version.loaded_at)
    described = api.Model(
        name=model.name,
        version=model.version,
        sha256=version.sha256,
        items=model.items or 0,
        history_items=model.readable or 0,
        embedding_size=version.embedding_size or 0,
        default_limit=version.limit,
        max_limit=model.max_k,
        longest_history=model.longest_history or 0,
        vocabulary_size=len(version.vocabulary) if version.vocabulary else 0,
        fallback_size=len(version.fallback),
        execution_provider=version.execution_provider,
        loaded_at=loaded_at,
        aliases=version.aliases,
        role=_role(version, router),
        has_user_keys=version.user_vocabulary is not None,
        has_history_type_keys=version.type_vocabulary is not None,
        takes_history_times=model.history_times is not None,
        features=[
            api.FeatureInput(
                name=feature.name,
                type=_FEATURE_TYPES[feature.kind],
                width=feature.width or 0,
                has_default=feature.default is not None,
            )
            for feature in model.features
        ],
    )
    if model.users is not None:
        described.users, described.first_user = model.users.count, model.users.first
    if model.history_types is not None:
        described.history_types = model.history_types.count
        described.first_history_type = model.history_types.first
    lane = router.lane_of(version)
    if lane is not None and lane.following is not None:
        following = lane.following()
        described.reference = masked(following.reference)
        described.refused_version = following.refused or ""
        if (failing := following.failing_code) is not None:
            described.source_failure = f"{failing}: {_SOURCE_FAILURES[failing]}{_LOG_SAYS_WHY}"
        if (refusal := following.refusal_code) is not None:
            described.refusal = f"{refusal}: {_REFUSALS[refusal]}{_LOG_SAYS_WHY}"
    return described


def _role(version: Version, router: Router) -> api.ModelRole:
    candidate = router.candidate
    if candidate is None or candidate.version is not version:
        return api.MODEL_ROLE_LIVE
    return api.MODEL_ROLE_CANARY if candidate.mode == "canary" else api.MODEL_ROLE_SHADOW
