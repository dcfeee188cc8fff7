"""Filters of requests: evaluated for the versions that may answer, before these read the requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

from recommender.errors import RecommenderError
from recommender.models.version import Version
from recommender.routing.router import Router


class Filtered(Protocol):
    """A request that may have a filter."""

    @property
    def model(self) -> str:
        """The model that the request names, as `Router.route` takes it; empty if it names none."""

    @property
    def filter(self) -> object | None:
        """Selects the items that may be recommended; None for all."""

    async def prepare(self, version: Version, deadline: float) -> None:
        """Do what takes long before a version reads the request; `deadline` is on the batcher's clock.

        Raises InvalidRequestError if the version cannot evaluate the filter, DeadlineError and BacklogFullError if that
        cannot be in time.
        """


async def prepare(asked: Filtered, router: Router, deadline: float) -> None:
    """Evaluate a request's filter for each version that may answer it, including versions that arrive meanwhile.

    Raises what `Router.route` and `Filtered.prepare` raise.
    """
    prepared: set[Version] = set()
    while True:
        version, candidate = router.route(asked.model), router.candidate
        if version not in prepared:
            await asked.prepare(version, deadline)
            prepared.add(version)
        elif candidate is not None and candidate.version not in prepared:
            with contextlib.suppress(RecommenderError):  # if the candidate reads it, it fails with the same
                await asked.prepare(candidate.version, deadline)
            prepared.add(candidate.version)
        else:
            return


async def prepare_many(
    requests: Sequence[tuple[int, Filtered]], router: Router, deadline: float
) -> dict[int, RecommenderError]:
    """Do so for each request of a call that has a filter; returns the errors, by the places of the requests.

    The versions that serve when it returns are those that every request was prepared for.
    """
    filtered = [(place, asked) for place, asked in requests if asked.filter is not None]
    errors: dict[int, RecommenderError] = {}
    serving: Sequence[Version] | None = None
    while filtered and router.serving() != serving:
        serving = router.serving()
        ended = await asyncio.gather(
            *(prepare(asked, router, deadline) for _, asked in filtered), return_exceptions=True
        )
        for (place, _), error in zip(filtered, ended, strict=True):
            if isinstance(error, RecommenderError):
                errors[place] = error
            elif error is not None:
                raise error
        filtered = [(place, asked) for place, asked in filtered if place not in errors]
    return errors
