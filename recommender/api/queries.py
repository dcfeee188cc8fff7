"""Read a request: hold it to the limits and to the rules of its proto, once, and then for each version that may answer.

A request becomes an `Asked`. It keeps every rule that depends on no version, so it is read for another version without
another look at the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from protovalidate import Validator

from recommender.api.batch_call import BatchCall, divided
from recommender.api.catalogue import Catalogue, fallback_of, nothing_known, prepare_mask, rules_for, selected
from recommender.api.events import NO_EVENTS, SURELY_SHORT, plain_events, read_events
from recommender.api.features import Given, features_for, plain_features
from recommender.api.messages import ceiling, validate
from recommender.api.options import Options, read_options
from recommender.api.rules import about
from recommender.api.users import User, find_user, known_user, nobody_known
from recommender.catalogue.attributes.filters import Filter
from recommender.domain import Query, Ranking
from recommender.errors import InvalidRequestError, Violation
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.routing.answering import NO_REMARKS, Remarks
from recommender.settings.requests import RequestSettings

_FIELDS = api.RecommendRequest.DESCRIPTOR.fields_by_name
_ITEM_IDS, _USER_KEY, _USER_ID, _FEATURES = (_FIELDS[name] for name in ("item_ids", "user_key", "user_id", "features"))
_EVENTS = frozenset(_FIELDS[name] for name in ("history_type_keys", "history_type_ids", "history_times"))
_USER_ALONE = Remarks(is_user_alone=True)
_FEW = 32
"""To sort so many takes less than to look through them twice."""
_MANY = 256
"""More are read by numpy."""
PART_ITEMS = 1 << 17
"""Items of requests that are read at a time: one that is read takes many times its bytes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a request may hold, within the ceilings of the proto, and what happens to what a model lacks."""

    history: int = 4096
    excluded: int = 10_000
    candidates: int = 10_000
    batch_requests: int = 1000
    reject_unknown: bool = False
    reject_inputs: bool = True

    @classmethod
    def of(cls, settings: RequestSettings) -> Limits:
        """The limits that the settings say."""
        return cls(
            history=settings.max_history,
            excluded=settings.max_excluded,
            candidates=settings.max_candidates,
            batch_requests=settings.max_batch_requests,
            reject_unknown=settings.unknown_items == "reject",
            reject_inputs=settings.unknown_inputs == "reject",
        )


@dataclass(slots=True)
class Asked:
    """A request that was read. `history` names items by ids, unless the options have keys for it.

    `highest` is the largest id of a plain request, which has ids of a history and nothing else. It is infinite for any
    other request; `highest_beside` is the same for one that also has inputs of a model. An Asked is made for every
    call, so it is not frozen: that would take five times as long.
    """

    history: tuple[int, ...]
    highest: float
    request_id: str
    model: str
    options: Options
    highest_beside: float = math.inf

    @property
    def key(self) -> str:
        """Puts a user on one side of a split: the routing key, else the id of the call, else chance."""
        return self.options.routing_key or self.request_id

    @property
    def filter(self) -> Mapping[str, Filter] | None:
        """The filters to prepare, by their fields; None without any."""
        return self.options.filters

    async def prepare(self, version: Version, deadline: float) -> None:
        """See to it that `for_version` has what the filters select; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the version cannot evaluate it, DeadlineError and BacklogFullError if that cannot
        be in time.
        """
        prepared = self.options.prepared = self.options.prepared or {}
        for field, wanted in (self.options.filters or {}).items():
            if not isinstance(prepared.get((version, wanted)), ItemMask):
                with about(field):
                    await prepare_mask(version, wanted, prepared, deadline)

    def for_version(self, version: Version, *, leniently: bool = False) -> tuple[Query | Ranking, Remarks]:
        """Read the request for a version, without side effects: a query, or the ranking if nothing is left to rank.

        Read `leniently`, inputs that the version does not take are ignored, whatever the limits say. Raises
        InvalidRequestError if the request needs more than the version offers, InputsError if the version takes other
        inputs, and what `prepare` raised for that version.
        """
        if self.highest < version.plain_items:
            history = self.history[-version.plain_history :]
            beside = version.beside
            remarks = NO_REMARKS if beside is None else Remarks(new_items=beside.items)
            return Query(history, version.limit, (), None, 0, (), (), (), version.masks, beside), remarks
        if (
            self.highest_beside < version.plain_beside
            and not leniently
            and (query := self._beside(version)) is not None
        ):
            remarks = NO_REMARKS if self.history else _USER_ALONE
            return query, remarks if query.beside is None else remarks._replace(new_items=query.beside.items)
        options = self.options
        model = version.model
        k = options.limit or version.limit
        if k > model.max_k:
            raise InvalidRequestError(
                Violation("limit", f"{options.limit} is more than the {model.max_k} that model {model.label} returns")
            )
        user = find_user(version, options.user)
        ignored = options.untaken(version, reject=options.reject_inputs and not leniently)
        features, unread = features_for(version, options.features, leniently=leniently)
        ignored += unread
        chosen = selected(version, options.filter, options.prepared)
        masks = version.masks if chosen is None else (*version.masks, chosen)
        matching = None if chosen is None else chosen.count_with(version.masks)
        catalogue = Catalogue(version, reject_unknown=options.reject_unknown, matching=matching)
        named = catalogue.known("item", self.history, options.history_keys)
        history = catalogue.readable(named, by_keys=bool(options.history_keys))
        excluded: frozenset[int] = frozenset()
        candidates: frozenset[int] | None = None
        if options.excluded is not None:
            excluded = frozenset(catalogue.known("excluded_item", *options.excluded))
        if options.exclude_history:
            excluded = excluded.union(named)
        if options.candidates is not None:
            candidates = frozenset(catalogue.known("candidate_item", *options.candidates)) - excluded
            excluded = frozenset()
        beside = catalogue.beside(excluded, candidates, options.filter)
        rules = None if options.rules is None else rules_for(version, options.rules, options.prepared)
        excluded = catalogue.recommendable(excluded)
        candidates = None if candidates is None else catalogue.recommendable(candidates)
        if not user.ranked or not (history or user.enough or not model.reads_history):
            self._check_fallback(version, user)
            ranking = fallback_of(version, k, excluded, candidates, chosen, rules)
            return ranking, catalogue.remarks(user, ignored, is_fallback=True)
        read = _most_recent(history, model.longest_history)
        events = NO_EVENTS
        if version.reads_events:
            places = self._places(catalogue, len(history))[len(history) - len(read) :]
            events = read_events(version, options, places, leniently=leniently)
        remarks = catalogue.remarks(user, (*ignored, *events.ignored), is_user_alone=not history)
        nothing = catalogue.matching == 0 or (candidates is not None and not candidates)
        if nothing and beside is None:
            return Ranking([], []), remarks
        _check_abilities(version, options, excluded, candidates)
        allowed = None if candidates is None else tuple(sorted(candidates))
        inputs = user.number, events.types, events.times, features
        return Query(read, k, tuple(sorted(excluded)), allowed, *inputs, masks, beside, rules), remarks

    def _beside(self, version: Version) -> Query | None:
        """Read a history of known items and other inputs, if the version reads all of them.

        Raises InputsError if it cannot read one of them.
        """
        history, options, model = self.history, self.options, version.model
        named, given = options.user, options.features
        if len(history) > version.plain_history:
            return None
        if named is not None:
            user = known_user(version, named)
            if user is None:
                return None
        elif not (history or not model.reads_history) or (
            model.users is not None and model.users.unknown == "fallback"
        ):
            return None
        else:
            user = 0
        told = version.reads_events or options.history_type_ids or options.history_type_keys or options.history_times
        if told and options.untaken(version, reject=options.reject_inputs):
            return None
        if given and not version.feature_names.issuperset(given):
            return None
        features, _ = features_for(version, given)
        types, times, _ = read_events(version, options, range(len(history))) if told else NO_EVENTS
        return Query(history, version.limit, (), None, user, types, times, features, version.masks, version.beside)

    def _places(self, catalogue: Catalogue, kept: int) -> range | list[int]:
        """The places in the request's history of the items that were not left out, of which there are so many."""
        keys = self.options.history_keys
        sent = len(self.history) or len(keys)
        return range(sent) if kept == sent else catalogue.places(self.history, keys)

    def _check_fallback(self, version: Version, user: User) -> None:
        """Raise InvalidRequestError if a version that cannot rank for the request has no fallback list either."""
        if version.fallback:
            return
        if not user.ranked:
            raise nobody_known(version, self.options.user)
        raise nothing_known(version, self.history, self.options.history_keys)


class Reader:
    """Reads requests within configured limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._no_options = Options(limits.reject_unknown, limits.reject_inputs)
        self._validator = Validator()
        # Every item takes a byte at least, so a request of fewer bytes has no list over its limit.
        self._certainly_fits = min(limits.history, limits.excluded, limits.candidates)
        self._longest_timeout = ceiling(api.StreamRecommendRequest, "timeout_ms")

    def read(
        self, request: api.RecommendRequest, request_id: str = "", frame: api.StreamRecommendRequest | None = None
    ) -> Asked:
        """Read a request. `frame` is the message that contained it, if its rules must be checked too.

        Most requests are plain: ids of a history and nothing else. Their rules are checked here, in a third of the time
        of the validator. Raises InvalidRequestError if the request is invalid for every version.
        """
        limits = self._limits
        fields = request.ListFields()
        if (
            len(fields) == 1
            and fields[0][0] is _ITEM_IDS
            and len(fields[0][1]) <= limits.history
            and (frame is None or 0 <= frame.timeout_ms <= self._longest_timeout)
        ):
            ids = fields[0][1]
            ends: Sequence[int]
            if len(ids) <= _MANY:
                history = tuple(ids[:])  # a slice is read in one go
                ends = sorted(history) if len(history) <= _FEW else (min(history), max(history))
            else:
                many = np.asarray(ids)
                history, ends = tuple(many.tolist()), (int(many.min()), int(many.max()))
            if ends[0] >= 0:
                return Asked(history, ends[-1], request_id, "", self._no_options)
        in_time = frame is None or 0 <= frame.timeout_ms <= self._longest_timeout
        if in_time and (asked := self._plain_beside(request, request_id, fields)) is not None:
            return asked
        if request.ByteSize() > self._certainly_fits:
            self._check_sizes(request)
        validate(self._validator, request if frame is None else frame)
        options = read_options(request, reject_unknown=limits.reject_unknown, reject_inputs=limits.reject_inputs)
        return Asked(tuple(request.item_ids[:]), math.inf, request_id, request.model, options)

    def _plain_beside(
        self, request: api.RecommendRequest, request_id: str, fields: Iterable[tuple[FieldDescriptor, Any]]
    ) -> Asked | None:
        """Read a request of inputs and ids of a history, and nothing else; None if it may break a rule."""
        history: tuple[int, ...] = ()
        highest, events = -1, 0
        user: int | str | None = None
        features: dict[str, Given] | None = None
        for field, value in fields:
            if field is _ITEM_IDS:
                if len(value) > self._limits.history:
                    return None
                history = tuple(value[:])
                ends = sorted(history) if len(history) <= _FEW else (min(history), max(history))
                sound, highest = ends[0] >= 0, ends[-1]
            elif field is _FEATURES:
                features = plain_features(value)
                sound = features is not None
            elif field is _USER_ID:
                sound, user = user is None and value >= 0, value
            elif field is _USER_KEY:
                sound, user = user is None and len(value) <= SURELY_SHORT, value
            else:
                events += 1
                sound = field in _EVENTS
            if not sound:
                return None
        options = Options(self._limits.reject_unknown, self._limits.reject_inputs, user=user, features=features)
        if events and events != plain_events(request, options, len(history)):
            return None
        return Asked(history, math.inf, request_id, "", options, highest)

    def divided(self, call: bytes) -> BatchCall:
        """Divide a batch call into its requests. Raises InvalidRequestError if it is malformed, or has too many."""
        return divided(call, self._limits.batch_requests)

    def model_of(self, request: api.GetModelRequest) -> str:
        """The name of the model that is asked for. Raises InvalidRequestError if it breaks the rules of the proto."""
        validate(self._validator, request)
        return request.model

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
            ("history_type_keys", request.history_type_keys, limits.history),
            ("history_type_ids", request.history_type_ids, limits.history),
            ("history_times", request.history_times, limits.history),
        ):
            if len(items) > most:
                advice = ": send the most recent ones" if field in ("item_ids", "item_keys") else ""
                raise InvalidRequestError(
                    Violation(field, f"{len(items)} items are more than the {most} that it may have{advice}")
                )


def _most_recent(history: tuple[int, ...], longest: int | None) -> tuple[int, ...]:
    """The part of a history that a model reads."""
    return history if longest is None or len(history) <= longest else history[-longest:]


def _check_abilities(
    version: Version, options: Options, excluded: frozenset[int], candidates: frozenset[int] | None
) -> None:
    """Refuse what the model cannot do: a short or a wrong list would be worse."""
    if excluded and "excluded" not in version.abilities:
        raise _lacking("exclude_history" if options.exclude_history else "excluded_item_ids", version, "excluded")
    if candidates is not None and "candidates" not in version.abilities:
        raise _lacking("candidate_item_ids", version, "candidates")
    if options.min_score is not None and "scores" not in version.abilities:
        raise InvalidRequestError(
            Violation("min_score", f"model {version.model.label} gives no scores to hold against it")
        )


def _lacking(field: str, version: Version, ability: str) -> InvalidRequestError:
    return InvalidRequestError(
        Violation(field, f"model {version.model.label} was exported without the input `{ability}`")
    )
