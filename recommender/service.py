"""The RPCs as plain async functions: wire message → query → batcher → wire message. Knows no transport."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import structlog
from google.protobuf import timestamp_pb2
from google.protobuf.internal.containers import RepeatedScalarFieldContainer
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from protovalidate import Validator

from recommender.batcher import Batcher
from recommender.domain import Model, Query, Ranking
from recommender.errors import InvalidRequestError, RecommenderError, UnknownModelError, Violation
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.status import status_of
from recommender.validation import validate
from recommender.vocabulary import Vocabulary

T = TypeVar("T", int, str)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that answers, with all that its replies and its description need."""

    model: Model
    batcher: Batcher
    abilities: frozenset[str]
    """Which of the optional parts of the model contract the model has: inputs, and the output `scores`."""
    sha256: str
    embedding_size: int | None
    execution_provider: str
    loaded_at: datetime
    vocabulary: Vocabulary | None = None
    fallback: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may hold at most, within the ceilings of the proto, and what happens to unknown items."""

    history: int = 4096
    excluded: int = 10_000
    candidates: int = 10_000
    batch_requests: int = 1000
    reject_unknown: bool = False


_NO_BOUND = -math.inf
"""The least score of who sets none."""


class RecommenderService:
    """Answers requests with one model. `limit` is how many recommendations a caller gets who sets none."""

    def __init__(self, served: Served, *, limit: int, limits: Limits) -> None:
        self._served = served
        self._limit = limit
        self._limits = limits
        self._validator = Validator()
        self._label = served.model.label
        self._plain_history = min(limits.history, served.model.longest_history or limits.history)
        self._plain_items = math.inf if served.model.items is None else served.model.items
        # Every item takes a byte at least, so a request of fewer bytes has no list over its limit.
        self._certainly_fits = min(limits.history, limits.excluded, limits.candidates)

    async def recommend(
        self, request: api.RecommendRequest, deadline: float = math.inf, request_id: str = ""
    ) -> api.RecommendResponse:
        """Answer one request; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the request is at fault, UnknownModelError if it names a model that is
        not served, and what `Batcher.submit` raises.
        """
        reply = api.RecommendResponse(request_id=request_id)
        query = self._asked(request, reply)
        if query is not None:
            self._fill(reply, await self._served.batcher.submit(query, deadline=deadline), request)
        return reply

    async def batch_recommend(
        self, request: api.BatchRecommendRequest, deadline: float = math.inf
    ) -> api.BatchRecommendResponse:
        """Answer every request of a call, each with an outcome of its own.

        Raises InvalidRequestError if the call has more requests than it may.
        """
        most = self._limits.batch_requests
        if len(request.requests) > most:
            raise InvalidRequestError(
                Violation("requests", f"{len(request.requests)} requests are more than the {most} that a call may have")
            )
        response = api.BatchRecommendResponse()
        asked: list[tuple[api.RecommendResult, api.RecommendRequest]] = []
        queries: list[Query] = []
        for each in request.requests:
            result = response.results.add()
            try:
                query = self._asked(each, result.response)
            except RecommenderError as error:
                result.error.CopyFrom(_outcome(error))
                continue
            if query is not None:
                asked.append((result, each))
                queries.append(query)
        outcomes = await self._served.batcher.submit_many(queries, deadline=deadline)
        for (result, each), outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, Ranking):
                self._fill(result.response, outcome, each)
            else:
                result.error.CopyFrom(_outcome(outcome))
        return response

    async def stream_recommend(
        self, message: api.StreamRecommendRequest, deadline: float = math.inf
    ) -> api.StreamRecommendResponse:
        """Answer one message of a stream; whatever goes wrong is its outcome, as `status_of` words it."""
        response = api.StreamRecommendResponse(correlation_id=message.correlation_id)
        try:
            self._check(message.request, message)
            query = self._query(message.request, response.response)
            if query is not None:
                ranking = await self._served.batcher.submit(query, deadline=deadline)
                self._fill(response.response, ranking, message.request)
        except Exception as error:  # noqa: BLE001 (one message's fate never ends the stream)
            response.error.CopyFrom(_outcome(error))
        return response

    def get_model(self, request: api.GetModelRequest) -> api.GetModelResponse:
        """Describe the model that a name stands for. Raises UnknownModelError if there is none."""
        validate(self._validator, request)
        self._resolve(request.model)
        return api.GetModelResponse(model=self._description())

    def list_models(self, _: api.ListModelsRequest) -> api.ListModelsResponse:
        """Describe every model that is served."""
        return api.ListModelsResponse(models=[self._description()])

    def _resolve(self, name: str) -> None:
        model = self._served.model
        if name not in ("", model.name, model.label):
            raise UnknownModelError(f"no model {name!r} is served; {model.label} is")

    def _description(self) -> api.Model:
        served, model = self._served, self._served.model
        loaded_at = timestamp_pb2.Timestamp()
        loaded_at.FromDatetime(served.loaded_at)
        return api.Model(
            name=model.name,
            version=model.version,
            sha256=served.sha256,
            items=model.items or 0,
            embedding_size=served.embedding_size or 0,
            default_limit=self._limit,
            max_limit=model.max_k,
            longest_history=model.longest_history or 0,
            vocabulary_size=len(served.vocabulary) if served.vocabulary else 0,
            fallback_size=len(served.fallback),
            execution_provider=served.execution_provider,
            loaded_at=loaded_at,
        )

    def _asked(self, request: api.RecommendRequest, reply: api.RecommendResponse) -> Query | None:
        """Check a request and turn it into a query; None if the reply is complete, with nothing to rank.

        Most requests hold ids of known items and nothing else. Those keep every rule, which takes a third of
        the time to see at once, and a test holds this to what the general way comes to.
        """
        fields = request.ListFields()
        if len(fields) == 1 and fields[0][0].number == api.RecommendRequest.ITEM_IDS_FIELD_NUMBER:
            history = tuple(fields[0][1])
            if len(history) <= self._plain_history and min(history) >= 0 and max(history) < self._plain_items:
                reply.model_version = self._label
                reply.source = api.SOURCE_MODEL
                return Query(history, self._limit)
        self._check(request)
        return self._query(request, reply)

    def _check(self, request: api.RecommendRequest, frame: Message | None = None) -> None:
        """Hold a request to the configured limits and to the rules of the proto.

        `frame` is the message that the request came in, if its own rules are to be held to as well.
        """
        if request.ByteSize() > self._certainly_fits:
            self._check_sizes(request)
        validate(self._validator, request if frame is None else frame)

    def _query(self, request: api.RecommendRequest, reply: api.RecommendResponse) -> Query | None:
        """Turn a request into a query and begin its reply; None if the reply is complete, with nothing to rank."""
        served = self._served
        model = served.model
        if request.model:
            self._resolve(request.model)
        k = request.limit or self._limit
        if k > model.max_k:
            raise InvalidRequestError(
                Violation("limit", f"{request.limit} is more than the {model.max_k} that model {model.label} returns")
            )
        reply.model_version = self._label
        reply.source = api.SOURCE_MODEL
        history = self._known(request.item_ids, request.item_keys, "item", reply)
        excluded: frozenset[int] = frozenset()
        candidates: frozenset[int] | None = None
        if request.excluded_item_ids or request.excluded_item_keys:
            named = self._known(request.excluded_item_ids, request.excluded_item_keys, "excluded_item", reply)
            excluded = frozenset(named)
        if request.exclude_history:
            excluded = excluded.union(history)
        if request.candidate_item_ids or request.candidate_item_keys:
            named = self._known(request.candidate_item_ids, request.candidate_item_keys, "candidate_item", reply)
            candidates = frozenset(named) - excluded
            excluded = frozenset()
        if not history:
            self._fall_back(reply, k, excluded, candidates)
            return None
        if candidates is not None and not candidates:
            return None
        self._check_abilities(request, excluded, candidates)
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
        self, ids: Sequence[int], keys: Sequence[str], field: str, reply: api.RecommendResponse
    ) -> tuple[int, ...]:
        """The items of a list that the catalogue has; the others are reported in the reply, or refused."""
        if keys:
            return self._known_keys(keys, field, reply)
        known = tuple(ids)
        items = self._served.model.items
        if not known or items is None or max(known) < items:
            return known
        unknown = [item for item in known if item >= items]
        if self._limits.reject_unknown:
            _refuse_unknown(f"{field}_ids", known, unknown, f"the catalogue has the ids 0 to {items - 1}")
        _report(reply.unknown_item_ids, unknown)
        return tuple(item for item in known if item < items)

    def _known_keys(self, keys: Sequence[str], field: str, reply: api.RecommendResponse) -> tuple[int, ...]:
        vocabulary = self._served.vocabulary
        if vocabulary is None:
            raise InvalidRequestError(
                Violation(f"{field}_keys", f"model {self._served.model.label} has no vocabulary: name items by ids")
            )
        ids = vocabulary.ids(keys)
        if None in ids:
            unknown = [key for key, item in zip(keys, ids, strict=True) if item is None]
            if self._limits.reject_unknown:
                _refuse_unknown(f"{field}_keys", keys, unknown, "the vocabulary does not have it")
            _report(reply.unknown_item_keys, unknown)
        return tuple(item for item in ids if item is not None)

    def _check_abilities(
        self, request: api.RecommendRequest, excluded: frozenset[int], candidates: frozenset[int] | None
    ) -> None:
        """Refuse what the model at hand cannot do: a short or a wrong list would be worse."""
        lacks = f"model {self._served.model.label} was exported without the input"
        if excluded and "excluded" not in self._served.abilities:
            field = "exclude_history" if request.exclude_history else "excluded_item_ids"
            raise InvalidRequestError(Violation(field, f"{lacks} `excluded`"))
        if candidates is not None and "candidates" not in self._served.abilities:
            raise InvalidRequestError(Violation("candidate_item_ids", f"{lacks} `candidates`"))
        if request.HasField("min_score") and "scores" not in self._served.abilities:
            raise InvalidRequestError(
                Violation("min_score", f"model {self._served.model.label} gives no scores to hold against it")
            )

    def _fall_back(
        self, reply: api.RecommendResponse, k: int, excluded: frozenset[int], candidates: frozenset[int] | None
    ) -> None:
        """Fill a reply from the model's fallback list. Raises InvalidRequestError if it has none."""
        if not self._served.fallback:
            items = self._served.model.items
            known = f": its ids are 0 to {items - 1}" if items is not None else ""
            raise InvalidRequestError(
                Violation(
                    "item_ids",
                    f"the history has no item of the catalogue{known}, and model {self._served.model.label} has no "
                    "fallback list to answer from",
                )
            )
        kept = (
            item
            for item in self._served.fallback
            if item not in excluded and (candidates is None or item in candidates)
        )
        reply.item_ids.extend(item for item, _ in zip(kept, range(k), strict=False))
        reply.source = api.SOURCE_FALLBACK
        self._add_keys(reply)

    def _fill(self, reply: api.RecommendResponse, ranking: Ranking, request: api.RecommendRequest) -> None:
        """Put a ranking into its reply."""
        item_ids, scores = ranking.item_ids, ranking.scores
        min_score = request.min_score if request.HasField("min_score") else _NO_BOUND
        if scores and scores[-1] < min_score:
            kept = sum(score >= min_score for score in scores)
            item_ids, scores = item_ids[:kept], scores[:kept]
        reply.item_ids.extend(item_ids)
        reply.scores.extend(scores)
        self._add_keys(reply)

    def _add_keys(self, reply: api.RecommendResponse) -> None:
        if self._served.vocabulary is not None:
            reply.item_keys.extend(self._served.vocabulary.keys(reply.item_ids))


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
