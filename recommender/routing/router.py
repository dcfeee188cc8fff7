"""Which version answers a request: the versions being served, by what requests call them.

A *lane* is what the operator named: a model file, a folder, an alias in a registry. One version at a time serves in it.
The first lane answers requests that name no model. A replaced version answers the requests that wait for it; then its
engine ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from recommender.batching.statistics import Statistics, merged
from recommender.errors import EngineError, UnavailableError, UnknownModelError, quoted
from recommender.models.follower import FollowerStatus
from recommender.models.version import Version
from recommender.routing.candidate import Bounds, Candidate
from recommender.settings.models import CandidateMode
from recommender.threads import in_background

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """A version begins to serve, or has answered its last request."""

    version: Version
    kind: Literal["serving", "retired"]


@dataclass(slots=True, eq=False)
class Lane:
    """One reference of the operator: names that requests may use before it is loaded, and the version that serves."""

    reference: str
    names: frozenset[str]
    version: Version | None = None
    following: Callable[[], FollowerStatus] | None = None
    """How its source is followed."""


class Router:
    """The lanes of one server. `live` is the version that answers requests that name no model; unset until one serves.

    `retire_grace` (seconds) bounds how long a replaced version keeps answering. `observer` gets every VersionEvent.
    """

    live: Version

    def __init__(self, *, retire_grace: float, observer: Callable[[VersionEvent], None] = lambda _: None) -> None:
        self.lanes: list[Lane] = []
        self.candidate: Candidate | None = None
        self._retire_grace = retire_grace
        self._observer = observer
        self._watches: dict[Version, asyncio.Task[None]] = {}
        self._retiring: dict[asyncio.Task[bool], Version] = {}
        self._retired: list[Statistics] = []
        self._stuck = False
        self._lost: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()

    def add_lane(self, reference: str, names: frozenset[str]) -> Lane:
        """Add a lane without a version. The first one added answers requests that name no model."""
        lane = Lane(reference, names)
        self.lanes.append(lane)
        return lane

    def try_out(
        self,
        lane: Lane,
        version: Version,
        *,
        mode: CandidateMode,
        share: float,
        bounds: Bounds,
        refuse: Callable[[str], None],
    ) -> None:
        """Adopt a version as the candidate next to the live one; `refuse` gets the reason if it is given up."""

        def give_up(reason: str) -> None:
            log.error("candidate rolled back", version=version.label, reason=reason, still_serving=self.live.label)
            self.leave(lane)
            refuse(reason)

        self.adopt(lane, version)
        self.candidate = Candidate(version, mode=mode, share=share, bounds=bounds, give_up=give_up)

    def pick(self, key: str) -> Version:
        """The version for a request that pins none: the live one, or a canary whose share has the key."""
        candidate = self.candidate
        if candidate is not None and candidate.mode == "canary" and candidate.meets(key):
            return candidate.version
        return self.live

    def adopt(self, lane: Lane, version: Version) -> None:
        """Let a version serve in a lane from now on; the one before it is retired.

        Requests already submitted keep their version.
        """
        before, lane.version = lane.version, version
        if lane is self.lanes[0]:
            self.live = version
        self._watches[version] = asyncio.create_task(self._watch(version))
        self._observer(VersionEvent(version, "serving"))
        if before is not None:
            self._retire(before)

    def leave(self, lane: Lane) -> None:
        """Empty a lane; the version in it is retired."""
        before, lane.version = lane.version, None
        if before is not None:
            self._retire(before)

    async def discard(self, version: Version) -> bool:
        """End a version that never served; False if its engine is stuck in a run."""
        await version.batcher.close()
        ended = await in_background(version.close_engine)
        self._stuck |= not ended
        return ended

    def route(self, name: str) -> Version:
        """The version that a request names by `name`, `name@version` or `name@alias`; empty means the first lane's.

        Raises UnknownModelError if the name is unknown, UnavailableError if it is still loading.
        """
        if not name:
            return self.live
        for lane in self.lanes:
            if (version := lane.version) is not None and _is_called(version, name):
                return version
        if any(name in lane.names for lane in self.lanes if lane.version is None):
            raise UnavailableError(f"model {quoted(name)} is being loaded; call another server or retry")
        labels = ", ".join(version.label for version in self.serving())
        raise UnknownModelError(f"no model {quoted(name)} is served; {labels} {'is' if ',' not in labels else 'are'}")

    def lane_of(self, version: Version) -> Lane | None:
        """The lane that a version serves in; None if it no longer serves."""
        return next((lane for lane in self.lanes if lane.version is version), None)

    def serving(self) -> Sequence[Version]:
        """Every version that serves, the first lane's first."""
        return [lane.version for lane in self.lanes if lane.version is not None]

    def statistics(self) -> Statistics:
        """The counts of all versions together, replaced ones included."""
        active = [*self.serving(), *self._retiring.values()]
        return merged([*self._retired, *(version.batcher.statistics() for version in active)])

    async def lost(self) -> EngineError:
        """Wait until the engine of a version that serves is lost, and return why."""
        return await asyncio.shield(self._lost)

    async def drain(self) -> None:
        """Wait until no request is in flight; new ones may still come."""
        for version in (*self.serving(), *self._retiring.values()):
            await version.batcher.drain()

    async def close(self) -> bool:
        """Fail waiting requests and end every engine; False if one is stuck in a run."""
        for version in (*self.serving(), *self._retiring.values()):
            await version.batcher.close()
        for lane in self.lanes:
            self.leave(lane)
        await asyncio.gather(*self._retiring)
        return not self._stuck

    def _retire(self, version: Version) -> None:
        if self.candidate is not None and self.candidate.version is version:
            self.candidate.close()
            self.candidate = None
        watch = self._watches.pop(version)
        if watch is not asyncio.current_task():
            watch.cancel()
        retirement = asyncio.create_task(self._end(version))
        self._retiring[retirement] = version
        retirement.add_done_callback(self._count)

    def _count(self, retirement: asyncio.Task[bool]) -> None:
        # In one step, so that a version is counted at every moment, and once.
        retired = self._retiring.pop(retirement).batcher.statistics()
        self._retired = [merged([*self._retired, retired])]

    async def _end(self, version: Version) -> bool:
        batcher = version.batcher
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retire_grace):
                await batcher.drain()
        await batcher.close()
        ended = await in_background(version.close_engine)
        if not ended:
            self._stuck = True
            log.error("the engine of a replaced version is stuck in a run and keeps its memory", model=version.label)
        log.info("version retired", version=version.label)
        self._observer(VersionEvent(version, "retired"))
        return ended

    async def _watch(self, version: Version) -> None:
        error = await version.batcher.broken()
        if self.candidate is not None and self.candidate.version is version:
            self.candidate.abandon(str(error))
            return
        if not self._lost.done():
            self._lost.set_result(error)


def _is_called(version: Version, name: str) -> bool:
    model = version.model
    return name in (model.name, version.label) or any(name == f"{model.name}@{alias}" for alias in version.aliases)
