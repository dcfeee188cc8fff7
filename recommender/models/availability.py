"""Availability: which items nobody gets, kept in force in every version that is loaded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from recommender.catalogue.availability.followed import FollowedList
from recommender.catalogue.availability.hidden import HiddenItems
from recommender.catalogue.availability.journal import Changes
from recommender.catalogue.availability.kept import KeptChanges
from recommender.catalogue.availability.lists import KeyList, ListSource
from recommender.models.version import Version
from recommender.threads import in_background

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Shelf:
    """How many items of a version are hidden, and how many keys of the list it does not have."""

    hidden: int
    unknown: int


class Availability:
    """Hides items in versions, from `attach` to `forget`: those of a list, and those that calls have hidden.

    `source` is where the list comes from, and `every` how often it is looked at, in seconds; `journal` keeps what calls
    hide. Each may be None. A change is in force in all versions before the next look for changes.
    """

    def __init__(self, source: ListSource | None = None, *, every: float = 1.0, journal: Path | None = None) -> None:
        self._versions: dict[Version, HiddenItems] = {}
        self._keys: KeyList | None = None
        self._lock = asyncio.Lock()
        self.list = None if source is None else FollowedList(source, self._use, every=every, patience=_PATIENCE_SECONDS)
        """The list that is followed; None if there is none."""
        self.kept = None if journal is None else KeptChanges(journal, self._follow)
        """What calls have hidden; None if there is no journal."""

    async def start(self) -> None:
        """Read the list and the journal, and follow them until `close`. Raises StartError if they cannot be read."""
        if self.list is not None:
            await self.list.start()
        if self.kept is not None:
            await self.kept.start()

    async def close(self) -> None:
        """Follow no longer; a second call is a no-op."""
        if self.list is not None:
            await self.list.close()
        if self.kept is not None:
            await self.kept.close()

    async def attach(self, version: Version) -> None:
        """Hide items in this version too, before it answers anybody."""
        async with self._lock:
            hidden = HiddenItems(version.label, version.model.items or 0, version.vocabulary)
            if self._keys is not None:
                await in_background(hidden.read, self._keys)
            if self.kept is not None:
                await in_background(hidden.follow, await self.kept.everything())
            await self._put_in_force(version, hidden)
            self._versions[version] = hidden

    def forget(self, version: Version) -> None:
        """Leave a version as it is: it answers nobody any longer."""
        self._versions.pop(version, None)

    def shelves(self) -> Mapping[str, Shelf]:
        """What is hidden in each version, by its label."""
        return {version.label: _shelf(version, hidden) for version, hidden in self._versions.items()}

    async def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that no version has."""
        vocabularies = [each.vocabulary for each in self._versions if each.vocabulary is not None]

        def look() -> list[str]:
            left = list(keys)
            for vocabulary in vocabularies:
                left = [key for key, item in zip(left, vocabulary.ids(left), strict=True) if item is None]
            return left

        return await in_background(look)

    async def _use(self, listed: KeyList) -> None:
        async with self._lock:
            self._keys = listed
            for version, hidden in tuple(self._versions.items()):
                await in_background(hidden.read, listed)
                await self._put_in_force(version, hidden)

    async def _follow(self, changes: Changes) -> None:
        async with self._lock:
            for version, hidden in tuple(self._versions.items()):
                await in_background(hidden.follow, changes)
                version.hide(await in_background(hidden.mask))

    async def _put_in_force(self, version: Version, hidden: HiddenItems) -> None:
        version.hide(await in_background(hidden.mask))
        shelf = _shelf(version, hidden)
        if self._keys is not None or shelf.hidden:
            log.info(
                "items hidden",
                model=version.label,
                hidden=shelf.hidden,
                unknown=shelf.unknown,
                such_as=hidden.some_unknown,
            )
        most = version.model.max_k
        if shelf.hidden and "candidates" not in version.abilities and most < (version.model.items or math.inf):
            log.warning(
                "hidden items may leave too few for an answer: the model has no input `candidates`",
                model=version.label,
                of=most,
            )


def _shelf(version: Version, hidden: HiddenItems) -> Shelf:
    return Shelf(sum(mask.items - mask.count for mask in version.masks), hidden.unknown)
