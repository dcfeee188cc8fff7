"""The RPCs as plain async functions: wire message → query → batcher → wire message. Knows no transport."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
from google.protobuf import timestamp_pb2
from google.protobuf.internal.containers import RepeatedScalarFieldContainer
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from protovalidate import Validator

from recommender.api.messages import ceiling, validate
from recommender.api.status import status_of
from recommender.domain import Query, Ranking
from recommender.errors import (
    BacklogFullError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    RecommenderError,
    UnavailableError,
    Violation,
)
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.candidate import Candidate
from recommender.routing.router import Router
from recommender.security.access import charge

T = TypeVar("T", int, str)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may hold at most, within the ceilings of the proto, and what happens to unknown items."""

    history: int = 4096
    excluded: int = 10_000
    candidates: int = 10_000
    batch_requests: int = 1000
    reject_unknown: bool = False


_ITEM_IDS = api.RecommendRequest.DESCRIPTOR.fields_by_name["item_ids"]
_FEW = 100
_SHADOW_SECONDS = 1.0
"""After which a copy of a request counts as failed."""


class RecommenderService:
    """Answers requests, each with the version that the router has for it."""

    def __init__(self, router: Router, *, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._validator = Validator()
        # Every item takes a byte at least, so a request of fewer bytes has no list over its limit.
        self._certainly_fits = min(limits.history, limits.excluded, limits.candidates)
        self._longest_timeout = ceiling(api.StreamRecommendRequest, "timeout_ms")

    async def recommend(
        self, request: api.RecommendRequest, deadline: float = math.inf, request_id: str = ""
    ) -> api.RecommendResponse:
        """Answer one request; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the request is at fault, what `Router.route` raises for the model that it
        names, and what `Batcher.submit` raises.
        """
        reply = api.RecommendResponse(request_id=request_id)
        served, query = self._asked(request, reply)
        if query is not None:
            if self._router.candidate is None:
                ranking = await served.batcher.submit(query, deadline=deadline)
            else:
                served, ranking = await self._compared(served, query, deadline, request, reply)
            self._fill(served, reply, ranking, request)
        return reply

    async def batch_recommend(
        self, request: api.BatchRecommendRequest, deadline: float = math.inf
    ) -> api.BatchRecommendResponse:
        """Answer every request of a call, each with an outcome of its own.

        Raises InvalidRequestError if the call has more requests than it may, QuotaError if its token does.
        """
        most = self._limits.batch_requests
        if len(request.requests) > most:
            raise InvalidRequestError(
                Violation("requests", f"{len(request.requests)} requests are more than the {most} that a call may have")
            )
        charge(len(request.requests))
        response = api.BatchRecommendResponse()
        asked: dict[Version, list[tuple[api.RecommendResult, api.RecommendRequest, Query]]] = {}
        add_result = response.results.add
        for each in request.requests:
            result = add_result()
            try:
                served, query = self._asked(each, result.response)
            except RecommenderError as error:
                result.error.CopyFrom(_outcome(error))
                continue
            if query is not None:
                asked.setdefault(served, []).append((result, each, query))
        shares = [
            served.batcher.submit_many([query for _, _, query in rows], deadline=deadline)
            for served, rows in asked.items()
        ]
        started = time.monotonic()
        outcomes = [await shares[0]] if len(shares) == 1 else await asyncio.gather(*shares)
        left = self._settle(asked, outcomes, time.monotonic() - started)
        if left:
            await self._answer_instead(left, deadline)
        return response

    def _settle(
        self,
        asked: Mapping[Version, Sequence[tuple[api.RecommendResult, api.RecommendRequest, Query]]],
        outcomes: Sequence[Sequence[Ranking | RecommenderError]],
        seconds: float,
    ) -> list[tuple[api.RecommendResult, api.RecommendRequest]]:
        """Fill the results of a call that took `seconds`; those are left that the live version is to answer instead."""
        candidate = self._router.candidate
        canary = candidate if candidate is not None and candidate.mode == "canary" else None
        left = []
        for (served, rows), ended in zip(asked.items(), outcomes, strict=True):
            for (result, request, _), outcome in zip(rows, ended, strict=True):
                if canary is not None and served in (self._router.live, canary.served):
                    # All rows took as long as the call did: that says nothing against either version.
                    canary.note(served, seconds, failed=not isinstance(outcome, Ranking))
                if isinstance(outcome, Ranking):
                    self._fill(served, result.response, outcome, request)
                elif self._may_answer_instead(served, outcome, request):
                    left.append((result, request))
                else:
                    result.error.CopyFrom(_outcome(outcome))
        return left

    async def _answer_instead(
        self, left: Sequence[tuple[api.RecommendResult, api.RecommendRequest]], deadline: float
    ) -> None:
        """Answer with the live version what the canary of a call could not."""
        live = self._router.live
        rows = []
        for result, request in left:
            _clear(result.response)
            query = self._query(live, request, result.response)
            if query is not None:
                rows.append((result, request, query))
        outcomes = await live.batcher.submit_many([query for _, _, query in rows], deadline=deadline)
        for (result, request, _), outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Ranking):
                self._fill(live, result.response, outcome, request)
            else:
                result.error.CopyFrom(_outcome(outcome))

    def _may_answer_instead(self, served: Version, error: Exception, request: api.RecommendRequest) -> bool:
        """Whether the live version is to answer what another one failed at: not what a caller has pinned to it."""
        live = self._router.live
        pinned = request.model not in ("", live.model.name)
        return (
            served is not live and not pinned and isinstance(error, (EngineError, BacklogFullError, UnavailableError))
        )

    async def stream_recommend(
        self, message: api.StreamRecommendRequest, deadline: float = math.inf
    ) -> api.StreamRecommendResponse:
        """Answer one message of a stream; whatever goes wrong is its outcome, as `status_of` words it."""
        response = api.StreamRecommendResponse(correlation_id=message.correlation_id)
        try:
            charge(1)
            served, query = self._asked(message.request, response.response, message)
            if query is not None:
                if self._router.candidate is None:
                    ranking = await served.batcher.submit(query, deadline=deadline)
                else:
                    served, ranking = await self._compared(served, query, deadline, message.request, response.response)
                self._fill(served, response.response, ranking, message.request)
        except Exception as error:  # noqa: BLE001 (one message's fate never ends the stream)
            response.error.CopyFrom(_outcome(error))
        return response

    def get_model(self, request: api.GetModelRequest) -> api.GetModelResponse:
        """Describe the model that a name stands for. Raises what `Router.route` raises."""
        validate(self._validator, request)
        return api.GetModelResponse(model=self._description(self._router.route(request.model)))

    def list_models(self, _: api.ListModelsRequest) -> api.ListModelsResponse:
        """Describe every model that is served."""
        return api.ListModelsResponse(models=[self._description(served) for served in self._router.serving()])

    def _description(self, served: Version) -> api.Model:
        model = _description(served)
        lane, candidate = self._router.lane_of(served), self._router.candidate
        model.role = api.MODEL_ROLE_LIVE
        if candidate is not None and candidate.served is served:
            model.role = api.MODEL_ROLE_CANARY if candidate.mode == "canary" else api.MODEL_ROLE_SHADOW
        if lane is not None and lane.following is not None:
            following = lane.following()
            model.reference = following.reference
            model.source_failure = following.failing or ""
            model.refused_version = following.refused or ""
            model.refusal = following.refusal or ""
        return model

    def _asked(
        self,
        request: api.RecommendRequest,
        reply: api.RecommendResponse,
        frame: api.StreamRecommendRequest | None = None,
    ) -> tuple[Version, Query | None]:
        """Check a request and turn it into a query for a version; None if the reply is complete.

        `frame` is the message that the request came in, whose own rules are to be held to as well. Most requests
        hold ids of known items and nothing else. Those keep every rule, which takes a third of the time to see at once,
        and a test holds this to what the general way comes to.
        """
        fields = request.ListFields()
        if (
            len(fields) == 1
            and fields[0][0] is _ITEM_IDS
            and (frame is None or 0 <= frame.timeout_ms <= self._longest_timeout)
        ):
            router = self._router
            served = router.live if router.candidate is None else router.pick(_key(request, reply))
            history = tuple(fields[0][1][:])  # a slice is read in one go
            # To sort a few takes less than to look through them twice.
            ends = sorted(history) if len(history) <= _FEW else (min(history), max(history))
            if len(history) <= served.plain_history and ends[0] >= 0 and ends[-1] < served.plain_items:
                reply.model_version = served.label
                reply.source = api.SOURCE_MODEL
                return served, Query(history, served.limit)
        self._check(request, frame)
        return self._routed(request, reply)

    def _routed(self, request: api.RecommendRequest, reply: api.RecommendResponse) -> tuple[Version, Query | None]:
        """The version that answers a request, and the query for it. What a canary cannot answer, the live one does."""
        router = self._router
        served = router.route(request.model)
        candidate = router.candidate
        if candidate is None or served is not router.live or request.model not in ("", served.model.name):
            return served, self._query(served, request, reply)
        picked = router.pick(_key(request, reply))
        if picked is served:
            return served, self._query(served, request, reply)
        try:
            return picked, self._query(picked, request, reply)
        except InvalidRequestError:
            _clear(reply)
            query = self._query(served, request, reply)  # raises the same if the request is at fault
            candidate.note(picked, 0.0, failed=True)
            return served, query

    async def _compared(
        self,
        served: Version,
        query: Query,
        deadline: float,
        request: api.RecommendRequest,
        reply: api.RecommendResponse,
    ) -> tuple[Version, Ranking]:
        """Rank with a version while there is a candidate: count how it went, and mirror it if that is a shadow.

        Where a canary fails, the live version answers.
        """
        router = self._router
        candidate, live, pinned = router.candidate, router.live, request.model not in ("", router.live.model.name)
        started = time.monotonic()
        try:
            ranking = await served.batcher.submit(query, deadline=deadline)
        except (EngineError, BacklogFullError, DeadlineError, UnavailableError) as error:
            if candidate is not None and served in (live, candidate.served):
                candidate.note(served, time.monotonic() - started, failed=True)
            if not self._may_answer_instead(served, error, request):
                raise
            _clear(reply)
            again = self._query(router.live, request, reply)
            if again is None:
                raise
            return router.live, await router.live.batcher.submit(again, deadline=deadline)
        if candidate is not None and not pinned:
            candidate.note(served, time.monotonic() - started, failed=False)
            mirrors = candidate.mode == "shadow" and candidate.meets(_key(request, reply))
            if mirrors and candidate.has_room(live):
                copied = api.RecommendRequest()
                copied.CopyFrom(request)
                candidate.keep(asyncio.create_task(self._mirror(candidate, copied, ranking.item_ids)))
        return served, ranking

    async def _mirror(self, candidate: Candidate, request: api.RecommendRequest, answered: Sequence[int]) -> None:
        """Let a shadow answer a request that the live version has answered; nobody hears of it but the counts."""
        served = candidate.served
        started = time.monotonic()
        try:
            query = self._query(served, request, api.RecommendResponse())
            if query is None:
                return
            ranking = await served.batcher.submit(query, deadline=started + _SHADOW_SECONDS)
        except RecommenderError:
            candidate.note(served, time.monotonic() - started, failed=True)
        else:
            candidate.note(served, time.monotonic() - started, failed=False)
            candidate.compare(answered, ranking.item_ids)

    def _check(self, request: api.RecommendRequest, frame: Message | None = None) -> None:
        """Hold a request to the configured limits and to the rules of the proto.

        `frame` is the message that the request came in, if its own rules are to be held to as well.
        """
        if request.ByteSize() > self._certainly_fits:
            self._check_sizes(request)
        validate(self._validator, request if frame is None else frame)

    def _query(self, served: Version, request: api.RecommendRequest, reply: api.RecommendResponse) -> Query | None:
        """Turn a request into a query and begin its reply; None if the reply is complete, with nothing to rank."""
        model = served.model
        k = request.limit or served.limit
        if k > model.max_k:
            raise InvalidRequestError(
                Violation("limit", f"{request.limit} is more than the {model.max_k} that model {model.label} returns")
            )
        reply.model_version = served.label
        reply.source = api.SOURCE_MODEL
        history = self._known(served, request.item_ids, request.item_keys, "item", reply)
        excluded: frozenset[int] = frozenset()
        candidates: frozenset[int] | None = None
        if request.excluded_item_ids or request.excluded_item_keys:
            named = self._known(served, request.excluded_item_ids, request.excluded_item_keys, "excluded_item", reply)
            excluded = frozenset(named)
        if request.exclude_history:
            excluded = excluded.union(history)
        if request.candidate_item_ids or request.candidate_item_keys:
            named = self._known(
                served, request.candidate_item_ids, request.candidate_item_keys, "candidate_item", reply
            )
            candidates = frozenset(named) - excluded
            excluded = frozenset()
        if not history:
            self._fall_back(served, reply, k, excluded, candidates)
            return None
        if candidates is not None and not candidates:
            return None
        self._check_abilities(served, request, excluded, candidates)
        longest = model.longest_history
        if longest is not None and len(history) > longest:
            history = history[-longest:]
        if candidates is not None:
            return Query(history, k, (), tuple(sorted(candidates)))
        return Query(history, k, tuple(sorted(excluded)) if excluded else ())

    def _check_sizes(self, request: api.RecommendRequest) -> None:
        """Refuse lists over the configured limits before anything looks at their items."""
        limits = self._limits
        for field, items, most in (
            ("item_ids", request.item_ids, limits.history),
            ("item_keys", request.item_keys, limits.history),
            ("excluded_item_ids", request.excluded_item_ids, limits.excluded),
            ("excluded_item_keys", request.excluded_item_keys, limits.excluded),
            ("candidate_item_ids", request.candidate_item_ids, limits.candidates),
            ("candidate_item_keys", request.candidate_item_keys, limits.candidates),
        ):
            if len(items) > most:
                advice = ": send the most recent ones" if field in ("item_ids", "item_keys") else ""
                raise InvalidRequestError(
                    Violation(field, f"{len(items)} items are more than the {most} that it may have{advice}")
                )

    def _known(
        self, served: Version, ids: Sequence[int], keys: Sequence[str], field: str, reply: api.RecommendResponse
    ) -> tuple[int, ...]:
        """The items of a list that the catalogue has; the others are reported in the reply, or refused."""
        if keys:
            return self._known_keys(served, keys, field, reply)
        known = tuple(ids[:])
        items = served.model.items
        if not known or items is None or max(known) < items:
            return known
        unknown = [item for item in known if item >= items]
        if self._limits.reject_unknown:
            _refuse_unknown(f"{field}_ids", known, unknown, f"the catalogue has the ids 0 to {items - 1}")
        _report(reply.unknown_item_ids, unknown)
        return tuple(item for item in known if item < items)

    def _known_keys(
        self, served: Version, keys: Sequence[str], field: str, reply: api.RecommendResponse
    ) -> tuple[int, ...]:
        vocabulary = served.vocabulary
        if vocabulary is None:
            raise InvalidRequestError(
                Violation(f"{field}_keys", f"model {served.model.label} has no vocabulary: name items by ids")
            )
        ids = vocabulary.ids(keys)
        if None in ids:
            unknown = [key for key, item in zip(keys, ids, strict=True) if item is None]
            if self._limits.reject_unknown:
                _refuse_unknown(f"{field}_keys", keys, unknown, "the vocabulary does not have it")
            _report(reply.unknown_item_keys, unknown)
        return tuple(item for item in ids if item is not None)

    def _check_abilities(
        self,
        served: Version,
        request: api.RecommendRequest,
        excluded: frozenset[int],
        candidates: frozenset[int] | None,
    ) -> None:
        """Refuse what the model at hand cannot do: a short or a wrong list would be worse."""
        lacks = f"model {served.model.label} was exported without the input"
        if excluded and "excluded" not in served.abilities:
            field = "exclude_history" if request.exclude_history else "excluded_item_ids"
            raise InvalidRequestError(Violation(field, f"{lacks} `excluded`"))
        if candidates is not None and "candidates" not in served.abilities:
            raise InvalidRequestError(Violation("candidate_item_ids", f"{lacks} `candidates`"))
        if request.HasField("min_score") and "scores" not in served.abilities:
            raise InvalidRequestError(
                Violation("min_score", f"model {served.model.label} gives no scores to hold against it")
            )

    def _fall_back(
        self,
        served: Version,
        reply: api.RecommendResponse,
        k: int,
        excluded: frozenset[int],
        candidates: frozenset[int] | None,
    ) -> None:
        """Fill a reply from the model's fallback list. Raises InvalidRequestError if it has none."""
        if not served.fallback:
            items = served.model.items
            known = f": its ids are 0 to {items - 1}" if items is not None else ""
            raise InvalidRequestError(
                Violation(
                    "item_ids",
                    f"the history has no item of the catalogue{known}, and model {served.model.label} has no "
                    "fallback list to answer from",
                )
            )
        kept = (item for item in served.fallback if item not in excluded and (candidates is None or item in candidates))
        reply.item_ids.extend(item for item, _ in zip(kept, range(k), strict=False))
        reply.source = api.SOURCE_FALLBACK
        served.fallbacks += 1
        _add_keys(served, reply)

    def _fill(
        self, served: Version, reply: api.RecommendResponse, ranking: Ranking, request: api.RecommendRequest
    ) -> None:
        """Put a ranking into its reply."""
        item_ids, scores = ranking.item_ids, ranking.scores
        if scores and scores[-1] < request.min_score and request.HasField("min_score"):
            kept = sum(score >= request.min_score for score in scores)
            item_ids, scores = item_ids[:kept], scores[:kept]
        reply.item_ids.extend(item_ids)
        reply.scores.extend(scores)
        _add_keys(served, reply)


def _description(served: Version) -> api.Model:
    model = served.model
    loaded_at = timestamp_pb2.Timestamp()
    loaded_at.FromDatetime(served.loaded_at)
    return api.Model(
        name=model.name,
        version=model.version,
        sha256=served.sha256,
        items=model.items or 0,
        embedding_size=served.embedding_size or 0,
        default_limit=served.limit,
        max_limit=model.max_k,
        longest_history=model.longest_history or 0,
        vocabulary_size=len(served.vocabulary) if served.vocabulary else 0,
        fallback_size=len(served.fallback),
        execution_provider=served.execution_provider,
        loaded_at=loaded_at,
        aliases=served.aliases,
    )


def _add_keys(served: Version, reply: api.RecommendResponse) -> None:
    if served.vocabulary is not None:
        reply.item_keys.extend(served.vocabulary.keys(reply.item_ids))


def _key(request: api.RecommendRequest, reply: api.RecommendResponse) -> str:
    """What decides on which side of a split a request is: its user, else the call, else chance."""
    return request.routing_key or reply.request_id or secrets.token_hex(8)


def _clear(reply: api.RecommendResponse) -> None:
    """Take back what a reply holds of one version's answer."""
    request_id = reply.request_id
    reply.Clear()
    reply.request_id = request_id


def _outcome(error: Exception) -> status_pb2.Status:
    """The status of one request among many; what is our fault is logged, as no call fails that would."""
    status = status_of(error)
    if status.code == code_pb2.INTERNAL:
        log.error("request failed", exc_info=error)
    return status


def _refuse_unknown(field: str, named: Sequence[object], unknown: Iterable[object], why: str) -> None:
    """Name the first few strangers with their places."""
    strangers = frozenset(unknown)
    places = [(index, item) for index, item in enumerate(named) if item in strangers]
    raise InvalidRequestError(
        *(Violation(f"{field}[{index}]", f"{item!r} is unknown: {why}") for index, item in places[:10])
    )


def _report(target: RepeatedScalarFieldContainer[T], unknown: Iterable[T]) -> None:
    """Add what is not reported yet, each once."""
    seen = set(target)
    target.extend(item for item in dict.fromkeys(unknown) if item not in seen)
