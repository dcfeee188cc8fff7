"""Followers of every model source that the settings name, each with a lane in the router."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Sequence

from recommender.batching.cost import Observation
from recommender.models.artifact import Artifact
from recommender.models.availability import Availability
from recommender.models.follower import Follower, FollowerStatus
from recommender.models.loader import Loader
from recommender.models.proof import check_elsewhere
from recommender.models.sources.opening import open_remote_registry, open_source, open_sources
from recommender.models.sources.source import Source
from recommender.models.version import Version
from recommender.routing.candidate import Bounds
from recommender.routing.router import Lane, Router
from recommender.settings.settings import Settings
from recommender.threads import in_background


class Followers:
    """Loads the versions of one server with `loader`, brings them into `router` and follows their sources.

    Versions that never served are forgotten by `availability`.
    """

    def __init__(self, settings: Settings, loader: Loader, router: Router, availability: Availability) -> None:
        self._settings = settings
        self._loader = loader
        self._router = router
        self._availability = availability
        self._sources: list[Source] = []
        self._followers: list[Follower] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Find out where each model comes from. Raises StartError."""
        self._sources = await in_background(open_sources, self._settings.models)

    async def load(self) -> None:
        """Load one version of each model; the candidate waits for `follow`. After `open`. Raises StartError."""
        models = self._settings.models
        for source in tuple(self._sources):
            lane = self._router.add_lane(source.reference, source.names)
            await self._add(lane, self._follower(source, functools.partial(self._router.adopt, lane))).start()
        if models.candidate:
            source = await in_background(open_source, models, models.candidate, open_remote_registry)
            self._sources.append(source)
            lane = self._router.add_lane(source.reference, source.names)
            self._add(lane, self._trial(source, lane))

    def follow(self) -> None:
        """Follow the sources from now on, until `close`."""
        self._tasks = [asyncio.create_task(each.follow()) for each in self._followers if each.needs_following]

    def statistics(self) -> Sequence[FollowerStatus]:
        """How the source of each model is followed."""
        return [follower.statistics() for follower in self._followers]

    async def close(self) -> None:
        """Follow no longer; a second call is a no-op."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for source in self._sources:
            source.close()

    def _add(self, lane: Lane, follower: Follower) -> Follower:
        self._followers.append(follower)
        lane.following = follower.statistics
        return follower

    def _follower(self, source: Source, adopt: Callable[[Version], None]) -> Follower:
        models = self._settings.models
        return Follower(
            source,
            prove=self._check,
            load=self._loader.load,
            adopt=adopt,
            discard=self._discard,
            interval=models.model_poll_ms / 1e3,
            patience=models.registry_timeout_ms / 1e3,
            timeout=models.reload_timeout_ms / 1e3,
        )

    def _trial(self, source: Source, lane: Lane) -> Follower:
        """Follow the candidate's source: its versions are tried next to the live one."""
        models = self._settings.models
        bounds = Bounds(
            errors=models.candidate_max_error_percent / 100,
            latency=models.candidate_max_latency_ratio,
            least=models.candidate_least_requests,
        )

        def adopt(version: Version) -> None:
            self._router.try_out(
                lane,
                version,
                mode=models.candidate_mode,
                share=models.candidate_share_percent / 100,
                bounds=bounds,
                refuse=follower.refuse,
            )

        follower = self._follower(source, adopt)
        return follower

    async def _discard(self, version: Version) -> None:
        """End a version that never served."""
        self._availability.forget(version)
        await self._router.discard(version)

    async def _check(self, artifact: Artifact) -> Sequence[Observation]:
        """Check a version in another process with the same settings, which opens the files as this one would."""
        path = artifact.path if artifact.release is None else artifact.path.parent
        command = [
            sys.executable,
            "-m",
            "recommender",
            "models",
            "verify",
            str(path),
            "--json",
            "--parent",
            str(os.getpid()),
        ]
        timeout = self._settings.models.reload_timeout_ms / 1e3
        return await check_elsewhere(command, self._settings.environment(), timeout)
