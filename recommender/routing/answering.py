"""Answer requests: pick a version, rank, fall back to the live one if a canary fails, mirror to a shadow.

A request arrives as an `Asked`, which knows for each version what to rank. This module knows no messages.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from recommender.domain import Query, Ranking
from recommender.errors import (
    BacklogFullError,
    DeadlineError,
    EngineError,
    InputsError,
    InvalidRequestError,
    RecommenderError,
    UnavailableError,
)
from recommender.models.version import Version
from recommender.new_items import NewItems
from recommender.routing.candidate import Candidate
from recommender.routing.preparing import Filtered, prepare, prepare_many
from recommender.routing.router import Router
from recommender.threads import Turns

_SHADOW_SECONDS = 1.0
"""A copy of a request that takes longer has failed."""
_FAILURES = (EngineError, BacklogFullError, DeadlineError, UnavailableError)
"""Errors that count against the version; any other is the request's own fault."""
_UNREADABLE = (InvalidRequestError, BacklogFullError, DeadlineError)
"""Errors of a version that cannot read a request, or that its filters could not be prepared for."""
_WORTH_ANOTHER_TRY = (EngineError, BacklogFullError, UnavailableError)
"""Failures that another version may not have. A passed deadline has passed for all."""


class Remarks(NamedTuple):
    """Facts about an answer besides its ranking. Unknown items are those that the version lacks, each once."""

    unknown_item_ids: Sequence[int] = ()
    unknown_item_keys: Sequence[str] = ()
    is_fallback: bool = False
    """Whether the ranking is from the version's fallback list."""
    is_user_alone: bool = False
    """Whether the model ranked for the user without a history."""
    unknown_user: bool = False
    """Whether the request names a user that the version does not know."""
    ignored_inputs: Sequence[str] = ()
    """Fields of the request that the version has no input for."""
    matching_items: int | None = None
    """Items that the request's filter selects; None without a filter."""
    new_items: NewItems | None = None
    """The new items of which the ranking may hold some."""


NO_REMARKS = Remarks()


@dataclass(slots=True)
class Answer:
    """The answer to a request, and the version that gave it."""

    version: Version
    ranking: Ranking
    remarks: Remarks


class Asked(Filtered, Protocol):
    """A request that was read and keeps every rule that depends on no version."""

    @property
    def key(self) -> str:
        """Puts the request on one side of a split, always the same; empty leaves it to chance."""

    def for_version(self, version: Version, *, leniently: bool = False) -> tuple[Query | Ranking, Remarks]:
        """Read the request for a version, without side effects: a query, or the ranking if nothing is left to rank.

        Read `leniently`, inputs that the version does not take are ignored. Raises InvalidRequestError if that version
        cannot answer the request, InputsError if it takes other inputs, and what `prepare` raised for that version.
        """


Outcome: TypeAlias = Answer | RecommenderError
_Row: TypeAlias = tuple[int, Asked, Query, Remarks]
"""A request that needs the engine, with its place in its call."""
_Copy: TypeAlias = tuple[Asked, Sequence[int]]
"""A request that the live version has answered, and the items it got."""


class Answering:
    """Answers requests with the versions of a router, and compares a candidate with the live version.

    The requests of a call are read in `turns`.
    """

    def __init__(self, router: Router, turns: Turns) -> None:
        self._router = router
        self._turns = turns

    async def answer(self, asked: Asked, deadline: float = math.inf) -> Answer:
        """Answer one request; `deadline` is on the batcher's clock.

        Raises what `Router.route`, `Asked.for_version` and `Batcher.submit` raise.
        """
        router = self._router
        if asked.filter is not None:
            await prepare(asked, router, deadline)
        self._turns.begin_short()
        try:
            if router.candidate is not None:
                return await self._answer_beside(router.candidate, asked, deadline)
            version = router.route(asked.model) if asked.model else router.live
            wanted, remarks = asked.for_version(version)
            if isinstance(wanted, Query):
                return Answer(version, await version.batcher.submit(wanted, deadline=deadline), remarks)
            return _finished(version, wanted, remarks)
        finally:
            self._turns.end_short()

    async def answer_many(self, requests: Sequence[Asked], deadline: float = math.inf) -> list[Outcome]:
        """Return the outcome of each request of a call, in order: its answer, or the error that `answer` raises."""
        router, call = self._router, _Call()
        coming: list[tuple[int, Asked]] = list(enumerate(requests))
        call.outcomes |= await prepare_many(coming, router, deadline)
        candidate, live, serving = router.candidate, router.live, router.serving()
        late: list[tuple[int, Asked]] = []

        def reading() -> Iterator[None]:
            for place, asked in coming:
                if asked.filter is not None and (place in call.outcomes or router.serving() != serving):
                    if place not in call.outcomes:  # for a version that arrived between two turns: it takes long
                        late.append((place, asked))
                    continue
                try:
                    if candidate is None:
                        version = router.route(asked.model) if asked.model else router.live
                        wanted, remarks = asked.for_version(version)
                    else:
                        version, wanted, remarks = self._pick(asked, candidate)
                    call.add(place, asked, version, wanted, remarks)
                except RecommenderError as error:
                    call.outcomes[place] = error
                yield

        while coming:
            await self._turns.through(reading())
            if router.serving() == serving:
                break
            # A version that was replaced between two turns takes no more rows.
            coming = [*late, *call.take_from_others(router.serving())]
            late.clear()
            call.outcomes |= await prepare_many(coming, router, deadline)
            serving = router.serving()
        started = time.monotonic()
        await call.rank(deadline)
        if candidate is not None:
            failed = self._compare(call, candidate, live, time.monotonic() - started)
            call.outcomes |= await self._answers_of_live(failed, deadline)
        return [call.outcomes[place] for place in range(len(requests))]

    async def _answer_beside(self, candidate: Candidate, asked: Asked, deadline: float) -> Answer:
        """Answer one request while there is a candidate. A call of one would cost half as much again."""
        router, live = self._router, self._router.live
        version, wanted, remarks = self._pick(asked, candidate)
        if not isinstance(wanted, Query):
            return _finished(version, wanted, remarks)
        started = time.monotonic()
        try:
            ranking = await version.batcher.submit(wanted, deadline=deadline)
        except _FAILURES as error:
            _note(candidate, live, version, time.monotonic() - started, failed=True)
            if not self._is_for_live(version, asked, error):
                raise
            if asked.filter is not None and router.live is not live:
                await prepare(asked, router, deadline)
            version = router.live
            wanted, remarks = asked.for_version(version, leniently=True)  # the candidate took its inputs
            if not isinstance(wanted, Query):
                return _finished(version, wanted, remarks)
            return Answer(version, await version.batcher.submit(wanted, deadline=deadline), remarks)
        _note(candidate, live, version, time.monotonic() - started, failed=False)
        if candidate.mode == "shadow" and version is live and not self._pins(asked):
            _mirror(candidate, live, [(asked, ranking.item_ids)], self._turns)
        return Answer(version, ranking, remarks)

    def _pick(self, asked: Asked, candidate: Candidate) -> tuple[Version, Query | Ranking, Remarks]:
        """Pick the version for a request, and read it for that; the live one if a canary cannot answer it."""
        router = self._router
        version = router.route(asked.model)
        if version is router.live and not self._pins(asked):
            picked = router.pick(asked.key)
            if picked is not version:
                try:
                    return picked, *asked.for_version(picked)
                except _UNREADABLE as error:
                    wanted, remarks = _read_beside(asked, version, picked)  # raises too if the request is at fault
                    if isinstance(error, InvalidRequestError) and not isinstance(error, InputsError):
                        candidate.note(picked, 0.0, failed=True)
                    return version, wanted, remarks
            return version, *_read_beside(asked, version, candidate.version)
        return version, *asked.for_version(version)

    async def _answers_of_live(self, failed: Sequence[tuple[int, Asked]], deadline: float) -> dict[int, Outcome]:
        """The outcomes of requests that another version failed at, from the live one."""
        instead = _Call()
        instead.outcomes |= await prepare_many(failed, self._router, deadline)
        live = self._router.live
        for place, asked in failed:
            if place not in instead.outcomes:
                try:
                    instead.add(place, asked, live, *asked.for_version(live, leniently=True))
                except InvalidRequestError as error:
                    instead.outcomes[place] = error
        await instead.rank(deadline)
        return instead.outcomes

    def _compare(self, call: _Call, candidate: Candidate, live: Version, seconds: float) -> list[tuple[int, Asked]]:
        """Count how the rows of a call ended, and mirror them. Returns those that the live version must answer instead.

        Each row counts with the seconds of its call, on both sides.
        """
        failed: list[tuple[int, Asked]] = []
        copies: list[_Copy] = []
        for version, rows in call.rows.items():
            for place, asked, _, _ in rows:
                outcome = call.outcomes[place]
                if isinstance(outcome, (Answer, *_FAILURES)):
                    _note(candidate, live, version, seconds, failed=not isinstance(outcome, Answer))
                if isinstance(outcome, Answer):
                    if candidate.mode == "shadow" and version is live and not self._pins(asked):
                        copies.append((asked, outcome.ranking.item_ids))
                elif self._is_for_live(version, asked, outcome):
                    failed.append((place, asked))
        if copies and candidate is self._router.candidate:
            _mirror(candidate, live, copies, self._turns)
        return failed

    def _is_for_live(self, version: Version, asked: Asked, error: Exception) -> bool:
        """Whether the live version is to answer what another one failed at."""
        return version is not self._router.live and isinstance(error, _WORTH_ANOTHER_TRY) and not self._pins(asked)

    def _pins(self, asked: Asked) -> bool:
        """Whether a request names a version, or another model than the live one."""
        return asked.model not in ("", self._router.live.model.name)


class _Call:
    """The requests of one call. Each gets an outcome, by its place."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.rows: dict[Version, list[_Row]] = {}

    def add(self, place: int, asked: Asked, version: Version, wanted: Query | Ranking, remarks: Remarks) -> None:
        """Add a request as a version reads it; it has its outcome at once if there is nothing to rank."""
        if isinstance(wanted, Query):
            self.rows.setdefault(version, []).append((place, asked, wanted, remarks))
        else:
            self.outcomes[place] = _finished(version, wanted, remarks)

    def take_from_others(self, serving: Sequence[Version]) -> list[tuple[int, Asked]]:
        """Take out the rows of versions other than these, and return them."""
        others = [version for version in self.rows if version not in serving]
        return [(place, asked) for version in others for place, asked, _, _ in self.rows.pop(version)]

    async def rank(self, deadline: float) -> None:
        """Rank the rows, those of several versions at the same time."""
        if not self.rows:
            return
        shares = [
            version.batcher.submit_many([query for _, _, query, _ in rows], deadline=deadline)
            for version, rows in self.rows.items()
        ]
        ended = [await shares[0]] if len(shares) == 1 else await asyncio.gather(*shares)
        outcomes = self.outcomes
        for (version, rows), rankings in zip(self.rows.items(), ended, strict=True):
            for (place, _, _, remarks), ranking in zip(rows, rankings, strict=True):
                outcomes[place] = Answer(version, ranking, remarks) if isinstance(ranking, Ranking) else ranking


def _read_beside(asked: Asked, version: Version, other: Version) -> tuple[Query | Ranking, Remarks]:
    """Read a request for a version, without the inputs that only the `other` one takes.

    So callers may send them while either version answers. Raises InvalidRequestError as `Asked.for_version` does.
    """
    try:
        return asked.for_version(version)
    except InputsError as error:
        try:
            asked.for_version(other)
        except InputsError as others:
            if others.untaken & error.untaken:
                raise error from None
        except _UNREADABLE:
            raise error from None
        return asked.for_version(version, leniently=True)


def _note(candidate: Candidate, live: Version, version: Version, seconds: float, *, failed: bool) -> None:
    """Count a request for its side, unless a third version had it."""
    if version in (live, candidate.version):
        candidate.note(version, seconds, failed=failed)


def _finished(version: Version, ranking: Ranking, remarks: Remarks) -> Answer:
    """Answer a request that needs no engine."""
    if remarks.is_fallback:
        version.fallbacks += 1
    return Answer(version, ranking, remarks)


def _mirror(candidate: Candidate, live: Version, copies: Sequence[_Copy], turns: Turns) -> None:
    """Send a shadow its share of these copies, as many as it has room for."""
    met = [copy for copy in copies if candidate.meets(copy[0].key)]
    sent = met[: candidate.room(live, len(met))]
    if sent:
        candidate.keep(asyncio.create_task(_shadow(candidate, sent, turns)), len(sent))


async def _shadow(candidate: Candidate, copies: Sequence[_Copy], turns: Turns) -> None:
    """Let a shadow answer copies of one call, and compare; its answers are discarded."""
    version = candidate.version
    rows: list[tuple[Query, Sequence[int]]] = []

    def read(copy: _Copy) -> None:
        asked, answered = copy
        try:
            wanted, _ = asked.for_version(version)
        except (InputsError, BacklogFullError, DeadlineError):
            return
        except InvalidRequestError:
            candidate.note(version, 0.0, failed=True)
        else:
            if isinstance(wanted, Query):
                rows.append((wanted, answered))

    await turns.each(copies, read)
    started = time.monotonic()
    outcomes = await version.batcher.submit_many([query for query, _ in rows], deadline=started + _SHADOW_SECONDS)
    seconds = time.monotonic() - started
    for (_, answered), outcome in zip(rows, outcomes, strict=True):
        candidate.note(version, seconds, failed=not isinstance(outcome, Ranking))
        if isinstance(outcome, Ranking):
            candidate.compare(answered, outcome.item_ids)
