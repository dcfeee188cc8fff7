"""Which version answers a request: the versions being served, by what requests call them.

A *lane* is what the operator named: a model file, a folder, an alias in a registry. One version at a time serves in it.
The first lane answers requests that name no model. A version that another replaces answers those who wait for it, then
its engine ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from recommender.batching.statistics import Statistics, merged
from recommender.errors import EngineError, UnavailableError, UnknownModelError
from recommender.models.version import FollowerStatus, Version
from recommender.routing.candidate import Bounds, Candidate
from recommender.settings.models import CandidateMode
from recommender.threads import in_background

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """What an observer is told: a version begins to serve, or has answered its last request."""

    served: Version
    kind: Literal["serving", "retired"]


@dataclass(slots=True, eq=False)
class Lane:
    """What the operator named, what requests may call it before it is loaded, and the version that serves in it."""

    reference: str
    names: frozenset[str]
    served: Version | None = None
    following: Callable[[], FollowerStatus] | None = None
    """How its source is followed."""


class Router:
    """The lanes of one server. `live` is the version that answers who names no model; unset until one serves.

    `retire_grace` (seconds) is how long those who wait for a replaced version may take. `observer` is told of changes.
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
        """A lane without a version. The first one added answers who names no model."""
        lane = Lane(reference, names)
        self.lanes.append(lane)
        return lane

    def try_out(
        self,
        lane: Lane,
        served: Version,
        *,
        mode: CandidateMode,
        share: float,
        bounds: Bounds,
        refuse: Callable[[str], None],
    ) -> None:
        """Adopt a version as the candidate beside the live one; `refuse` is told why if it must go."""

        def give_up(reason: str) -> None:
            log.error("candidate rolled back", version=served.label, reason=reason, still_serving=self.live.label)
            self.leave(lane)
            refuse(reason)

        self.adopt(lane, served)
        self.candidate = Candidate(served, mode=mode, share=share, bounds=bounds, give_up=give_up)

    def pick(self, key: str) -> Version:
        """Who answers a request that pins no version: the live one, or a canary whose share has the key."""
        candidate = self.candidate
        if candidate is not None and candidate.mode == "canary" and candidate.meets(key):
            return candidate.served
        return self.live

    def adopt(self, lane: Lane, served: Version) -> None:
        """Let a version serve in a lane from now on; the one before it is retired.

        Requests that were already taken in keep the version that they were taken in by.
        """
        before, lane.served = lane.served, served
        if lane is self.lanes[0]:
            self.live = served
        self._watches[served] = asyncio.create_task(self._watch(served))
        self._observer(VersionEvent(served, "serving"))
        if before is not None:
            self._retire(before)

    def leave(self, lane: Lane) -> None:
        """Let nothing serve in a lane; what did is retired."""
        before, lane.served = lane.served, None
        if before is not None:
            self._retire(before)

    async def discard(self, served: Version) -> bool:
        """End a version that never served; False if its engine is stuck in a run."""
        await served.batcher.close()
        ended = await in_background(served.close_engine)
        self._stuck |= not ended
        return ended

    def route(self, name: str) -> Version:
        """The version that a request means by `name`, `name@version` or `name@alias`; empty means the first lane's.

        Raises UnknownModelError if there is none of that name, UnavailableError if it is yet to be loaded.
        """
        if not name:
            return self.live
        for lane in self.lanes:
            if (served := lane.served) is not None and _is_called(served, name):
                return served
        if any(name in lane.names for lane in self.lanes if lane.served is None):
            raise UnavailableError(f"model {name!r} is being loaded; call another server or retry")
        labels = ", ".join(served.label for served in self.serving())
        raise UnknownModelError(f"no model {name!r} is served; {labels} {'is' if ',' not in labels else 'are'}")

    def lane_of(self, served: Version) -> Lane | None:
        """Where a version serves; None if it does no longer."""
        return next((lane for lane in self.lanes if lane.served is served), None)

    def serving(self) -> Sequence[Version]:
        """Every version that serves, the first lane's first."""
        return [lane.served for lane in self.lanes if lane.served is not None]

    def statistics(self) -> Statistics:
        """What all versions together have done, those that have been replaced included."""
        active = [*self.serving(), *self._retiring.values()]
        return merged([*self._retired, *(served.batcher.statistics() for served in active)])

    async def lost(self) -> EngineError:
        """Wait until the engine of a version that serves is lost, and return why."""
        return await asyncio.shield(self._lost)

    async def drain(self) -> None:
        """Wait until nobody waits for any version; callers may still come."""
        for served in (*self.serving(), *self._retiring.values()):
            await served.batcher.drain()

    async def close(self) -> bool:
        """Fail those who still wait and end every engine; False if one is stuck in a run."""
        for served in (*self.serving(), *self._retiring.values()):
            await served.batcher.close()
        for lane in self.lanes:
            self.leave(lane)
        await asyncio.gather(*self._retiring)
        return not self._stuck

    def _retire(self, served: Version) -> None:
        if self.candidate is not None and self.candidate.served is served:
            self.candidate.close()
            self.candidate = None
        watch = self._watches.pop(served)
        if watch is not asyncio.current_task():
            watch.cancel()
        retirement = asyncio.create_task(self._end(served))
        self._retiring[retirement] = served
        retirement.add_done_callback(self._retiring.pop)

    async def _end(self, served: Version) -> bool:
        batcher = served.batcher
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retire_grace):
                await batcher.drain()
        await batcher.close()
        self._retired = [merged([*self._retired, batcher.statistics()])]
        ended = await in_background(served.close_engine)
        if not ended:
            self._stuck = True
            log.error("the engine of a replaced version is stuck in a run and keeps its memory", model=served.label)
        log.info("version retired", version=served.label)
        self._observer(VersionEvent(served, "retired"))
        return ended

    async def _watch(self, served: Version) -> None:
        error = await served.batcher.broken()
        if self.candidate is not None and self.candidate.served is served:
            self.candidate.abandon(str(error))
            return
        if not self._lost.done():
            self._lost.set_result(error)


def _is_called(served: Version, name: str) -> bool:
    model = served.model
    return name in (model.name, served.label) or any(name == f"{model.name}@{alias}" for alias in served.aliases)
