"""Follows a source: fetches, proves, loads and adopts its versions while the previous one serves.

1. A version that cannot be fetched, or fails its proof, is refused: the current one keeps serving, and the same content
   is not tried again.
2. The source is asked again before a loaded version is adopted: of two promotions in a row, or one that is taken back,
   only the last counts.
3. A source that cannot be asked changes nothing. It is asked again with growing pauses and jitter, at most a minute
   apart. One that hangs holds a few threads at most: then it is not asked until it returns.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar

import structlog

from recommender.batching.cost import Observation
from recommender.errors import ModelError, RecommenderError, SourceError, SourceTimeoutError
from recommender.models.artifact import Artifact, Release
from recommender.models.sources.source import Source
from recommender.models.version import Version
from recommender.threads import begin

log = structlog.get_logger(__name__)

_LONGEST_PAUSE = 60.0
_JITTER = 0.2
_PROGRESS_SECONDS = 5.0
_MOST_HUNG = 3
"""A start may ask for what is wanted, for others, and fetch one of these."""

R = TypeVar("R")


Outcome: TypeAlias = Literal["served", "refused", "overtaken", "rolled_back"]
"""How an attempt to bring a version in has ended.

`overtaken`: the source wanted another one by the time it was loaded. `rolled_back`: a candidate did serve, and worse
than its bounds allow.
"""


SourceFailure: TypeAlias = Literal["SOURCE_TIMEOUT", "SOURCE_UNREACHABLE", "NO_VERSION"]
Refusal: TypeAlias = Literal["VERSION_REFUSED", "VERSION_FAILED", "ROLLED_BACK"]
"""The code of a failure that callers get. Its reason may name hosts, users and paths, so only operators see it."""


@dataclass(frozen=True, slots=True)
class FollowerStatus:
    """How one source is followed, as of now.

    `loading` is the version on its way in. `refused` is the last one that was refused, with `refusal` as the
    reason, until another one serves. `failing` says why the source cannot be asked, `failing_since` since when.
    `failing_code` and `refusal_code` say as much of it as callers may know.
    """

    reference: str
    serving: str | None
    loading: str | None
    refused: str | None
    refusal: str | None
    refusal_code: Refusal | None
    failing: str | None
    failing_code: SourceFailure | None
    failing_since: datetime | None
    outcomes: dict[Outcome, int]


class Follower:
    """Loads the versions of one source, one at a time.

    `prove` tries an artifact in another process, `load` makes a Version of it, `adopt` lets that serve and `discard`
    ends it unused. `interval` is the seconds between two questions, `patience` those that an answer may take, and
    `timeout` those of a download.
    """

    def __init__(
        self,
        source: Source,
        *,
        prove: Callable[[Artifact], Awaitable[Sequence[Observation]]],
        load: Callable[[Artifact, Sequence[Observation]], Awaitable[Version]],
        adopt: Callable[[Version], None],
        discard: Callable[[Version], Awaitable[object]],
        interval: float,
        patience: float,
        timeout: float,
    ) -> None:
        self.source = source
        self._prove = prove
        self._load = load
        self._adopt = adopt
        self._discard = discard
        self._interval = interval
        self._patience = patience
        self._timeout = timeout
        self._current: Release | None = None
        self._version: Version | None = None
        self._loading: Release | None = None
        self._refused: Release | None = None
        self._refusal: str | None = None
        self._refusal_code: Refusal | None = None
        self._failing: str | None = None
        self._failing_code: SourceFailure | None = None
        self._failing_since: datetime | None = None
        self._failures = 0
        self._hung: set[asyncio.Future[Any]] = set()
        self._outcomes: dict[Outcome, int] = {"served": 0, "refused": 0, "overtaken": 0, "rolled_back": 0}

    async def start(self) -> None:
        """Load the first version, without a proof in another process: no traffic is at risk yet.

        If the wanted version is unavailable, the next best known one serves, with a warning. Raises the first error if
        none is available.
        """
        try:
            wanted = await self._wanted()
        except (SourceError, ModelError) as error:
            await self._start_with_another(error)
            self._note_failure(error)
            return
        try:
            await self._bring(wanted, proven=True)
        except ModelError as error:
            await self._start_with_another(error)
            self._refuse(wanted, error, 0.0)
        except SourceError as error:
            await self._start_with_another(error)
            self._note_failure(error)
        else:
            await self._keep(wanted)

    @property
    def needs_following(self) -> bool:
        """Whether what serves may change, or is yet to come."""
        return self.source.may_change or self._current is None

    async def follow(self) -> NoReturn:
        """Ask the source without end, and load what it wants; at once if none of its versions serves yet."""
        if self._current is None:
            await self.check()
        while True:
            await asyncio.sleep(self._pause())
            await self.check()

    async def check(self) -> None:
        """Ask the source once, and bring in what it wants unless that serves already or was refused."""
        try:
            wanted = await self._wanted()
        except (SourceError, ModelError) as error:
            self._note_failure(error)
            return
        self._note_answer()
        if wanted in (self._current, self._refused):
            return
        started = time.monotonic()
        log.info("loading a version", reference=self.source.reference, version=wanted.label)
        try:
            outcome = await self._bring(wanted)
        except SourceError as error:
            self._note_failure(error)
        except ModelError as error:
            self._refuse(wanted, error, time.monotonic() - started)
        except Exception as error:
            log.exception("loading failed", version=wanted.label)
            self._refuse(wanted, error, time.monotonic() - started)
        else:
            if outcome == "served":
                self._refused = self._refusal = self._refusal_code = None
            # In the turn in which the version began to serve: a reader sees both, or neither.
            self._report(wanted, outcome, time.monotonic() - started)
            if outcome == "served":
                await self._keep(wanted)

    def refuse(self, reason: str) -> None:
        """Take the version that serves for refused from now on: it is not brought in again."""
        if self._current is not None:
            self._refused, self._refusal, self._refusal_code = self._current, reason, "ROLLED_BACK"
            self._current = self._version = None
            self._outcomes["rolled_back"] += 1

    def statistics(self) -> FollowerStatus:
        """How the source is followed; the record does not change afterwards."""
        return FollowerStatus(
            reference=self.source.reference,
            serving=self._current.label if self._current else None,
            loading=self._loading.label if self._loading else None,
            refused=self._refused.label if self._refused else None,
            refusal=self._refusal,
            refusal_code=self._refusal_code,
            failing=self._failing,
            failing_code=self._failing_code,
            failing_since=self._failing_since,
            outcomes=dict(self._outcomes),
        )

    async def _start_with_another(self, error: RecommenderError) -> None:
        for other in await self._bounded(self._patience, self.source.others):
            try:
                await self._bring(other, proven=True)
            except RecommenderError as also:
                log.warning("this version cannot serve either", version=other.label, reason=str(also))
            else:
                log.warning(
                    "the wanted version cannot serve: another version does", version=other.label, reason=str(error)
                )
                await self._keep(other)
                return
        raise error

    async def _bring(self, release: Release, *, proven: bool = False) -> Outcome:
        """Fetch, prove, load and adopt a release, in this order."""
        self._loading = release
        try:
            artifact = await self._bounded(self._timeout, self.source.fetch, release, _Report(release))
            if self._version is not None and (artifact.sha256, release.label) == (
                self._version.sha256,
                self._version.label,
            ):
                self._current = release  # written again, and the same
                return "served"
            observations = () if proven else await self._prove(artifact)
            version = await self._load(artifact, observations)
            if not proven and await self._wants_another(release):
                await self._discard(version)
                return "overtaken"
            self._adopt(version)
        finally:
            self._loading = None
        self._current, self._version = release, version
        return "served"

    async def _keep(self, release: Release) -> None:
        """Have the source remember what serves; without that it serves all the same."""
        try:
            await self._bounded(self._patience, self.source.keep, release)
        except Exception as error:  # noqa: BLE001 (after any error the next version must be followed)
            log.warning(
                "the serving version is not recorded for the next start", version=release.label, reason=repr(error)
            )

    async def _wants_another(self, release: Release) -> bool:
        try:
            return await self._wanted() != release
        except (SourceError, ModelError):
            return False

    async def _wanted(self) -> Release:
        return await self._bounded(self._patience, self.source.wanted)

    async def _bounded(self, seconds: float, function: Callable[..., R], *arguments: object) -> R:
        """Call the source on a thread. Raises SourceTimeoutError if it has not returned within `seconds`.

        The thread of a call that hangs cannot be ended. With `_MOST_HUNG` of them nothing is asked until one returns.
        """
        if len(self._hung) >= _MOST_HUNG:
            await asyncio.wait(self._hung, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if len(self._hung) >= _MOST_HUNG:
                raise SourceTimeoutError(f"{self.source.reference} hangs in {len(self._hung)} earlier calls")
        call = begin(function, *arguments)
        call.add_done_callback(self._returned)
        done, _ = await asyncio.wait({call}, timeout=seconds)
        if not done:
            self._hung.add(call)
            raise SourceTimeoutError(f"{self.source.reference} did not answer within {seconds:g} s")
        return call.result()

    def _returned(self, call: asyncio.Future[Any]) -> None:
        """Note that a call has returned. If nothing waits for it any more, its error is ignored."""
        self._hung.discard(call)
        if not call.cancelled():
            call.exception()

    def _pause(self) -> float:
        pause = self._interval * 2.0 ** min(self._failures, 10)
        return min(pause, max(_LONGEST_PAUSE, self._interval)) * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

    def _note_failure(self, error: RecommenderError) -> None:
        self._failures += 1
        if self._failing is None:
            self._failing_since = datetime.now(UTC)
        if self._failing != str(error):
            log.warning("the source of a model cannot be asked", reference=self.source.reference, reason=str(error))
        self._failing = str(error)
        self._failing_code = "NO_VERSION" if isinstance(error, ModelError) else "SOURCE_UNREACHABLE"
        if isinstance(error, SourceTimeoutError):
            self._failing_code = "SOURCE_TIMEOUT"

    def _note_answer(self) -> None:
        if self._failing is not None:
            log.info("the source of a model answers again", reference=self.source.reference)
        self._failing = self._failing_code = self._failing_since = None
        self._failures = 0

    def _refuse(self, release: Release, error: Exception, seconds: float) -> None:
        reason = str(error) if isinstance(error, RecommenderError) else repr(error)
        self._refused, self._refusal = release, reason
        self._refusal_code = "VERSION_REFUSED" if isinstance(error, ModelError) else "VERSION_FAILED"
        self._report(release, "refused", seconds, reason)

    def _report(self, release: Release, outcome: Outcome, seconds: float, reason: str = "") -> None:
        self._outcomes[outcome] += 1
        told = {"version": release.label, "seconds": round(seconds, 3)}
        if outcome == "refused":
            serving = self._current.label if self._current else None
            log.error("version refused", **told, reason=reason, still_serving=serving)
        else:
            log.info("version served" if outcome == "served" else "version overtaken", **told)


class _Report:
    """Writes a line about a download every few seconds."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._next = time.monotonic() + _PROGRESS_SECONDS

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total > 0:
            self._next = now + _PROGRESS_SECONDS
            log.info("downloading", version=self._release.label, mb=round(done / 1e6, 1), of_mb=round(total / 1e6, 1))
