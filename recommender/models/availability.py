"""Availability: hidden items, and new items ranked with the model's, in every loaded version."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import structlog

from recommender.catalogue.availability.followed import FollowedList
from recommender.catalogue.availability.hidden import HiddenItems
from recommender.catalogue.availability.journal import Changes
from recommender.catalogue.availability.kept import KeptChanges
from recommender.catalogue.availability.lists import KeyList, ListSource
from recommender.catalogue.new_items.journal import KeptItem, NewChanges
from recommender.catalogue.new_items.ranked import RankedItems
from recommender.engine.contract import QUERY
from recommender.masks import ItemMask
from recommender.models.version import Version
from recommender.new_items import NewItems
from recommender.threads import in_background

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 20.0
_AT_ONCE = 1_000

NewItemState: TypeAlias = Literal["ranked", "waiting", "left_behind", "in_catalogue"]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The number of hidden items of a version, and the number of listed keys that it lacks.

    `new` items are ranked with its own, and `in_catalogue` are new items that it has itself.
    """

    hidden: int
    unknown: int
    new: int = 0
    in_catalogue: int = 0


@dataclass(frozen=True, slots=True)
class _Items:
    """One version's hidden items, and the new items that it ranks."""

    version: Version
    hidden: HiddenItems
    new: RankedItems

    def state(self) -> tuple[ItemMask | None, NewItems | None]:
        """The items that it may recommend, its own and new ones; blocks for milliseconds."""
        new = self.new.ranked(self.hidden.beside) if len(self.new) else None
        if (attributes := self.version.attributes) is not None:
            attributes.learn(self.new.learned())
            if new is not None:
                attributes.read_new(new)
        return self.hidden.mask(), new


class Availability:
    """Hides items in versions, from `attach` to `forget`: those of a list, and those that calls have hidden.

    `source` provides the list, and `every` is the seconds between two checks of it; `journal` keeps the changes of
    calls. Each may be None. Calls may add `most_new` items; with 0 versions rank none. A change is in force in all
    versions before the next check for changes.
    """

    def __init__(
        self,
        source: ListSource | None = None,
        *,
        every: float = 1.0,
        journal: Path | None = None,
        most_new: int = 0,
    ) -> None:
        self._versions: dict[Version, _Items] = {}
        self._keys: KeyList | None = None
        self._lock = asyncio.Lock()
        self.most_new = most_new
        self.list = None if source is None else FollowedList(source, self._use, every=every, patience=_PATIENCE_SECONDS)
        """The followed list; None without one."""
        self.kept = None if journal is None else KeptChanges(journal, self._follow, self._follow_new)
        """Changes made by calls; None without a journal."""

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
        """Hide items in this version too, and let it rank new ones, before it answers requests."""
        async with self._lock:
            hiding = HiddenItems(version.label, version.model.items or 0, version.vocabulary)
            items = _Items(version, hiding, self._new(version))
            if self._keys is not None:
                await in_background(items.hidden.read, self._keys)
            if self.kept is not None:
                space = (version.embedding_space or "") if self.most_new else None
                hidden, added = await self.kept.everything(version.label, space)
                await in_background(items.hidden.follow, hidden)
                await in_background(items.new.follow, added)
            await self._put_in_force(version, items)
            self._versions[version] = items

    def forget(self, version: Version) -> None:
        """Leave a version as it is: it answers no more requests."""
        self._versions.pop(version, None)

    def shelves(self) -> Mapping[str, Shelf]:
        """Counts of each version's hidden and new items, by its label."""
        return {version.label: _shelf(version, items) for version, items in self._versions.items()}

    async def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that no version has."""
        versions, items = list(self._versions), list(self._versions.values())

        def look() -> list[str]:
            left = list(keys)
            for version in versions:
                known = _known(version, left)
                left = [key for key, item in zip(left, known, strict=True) if item is None]
            for each in items:
                left = [key for key in left if not each.new.has(key)]
            return left

        return await in_background(look)

    def spared(self) -> set[str]:
        """The versions that are served and the spaces of their vectors: what is left behind by others may go."""
        return {version.label for version in self._versions} | {
            version.embedding_space for version in self._versions if version.embedding_space
        }

    async def states(self, items: Sequence[KeptItem]) -> list[NewItemState]:
        """Whether these new items are ranked, in their order."""
        versions = [(version, each.new) for version, each in self._versions.items()]

        def look() -> list[NewItemState]:
            found: list[NewItemState] = []
            for start in range(0, len(items), _AT_ONCE):
                part = items[start : start + _AT_ONCE]
                own = [_known(version, [item.key for item in part]) for version, _ in versions]
                for place, item in enumerate(part):
                    had = [
                        known[place] is not None
                        for (_, new), known in zip(versions, own, strict=True)
                        if new.fits(item.model, item.space, item.size)
                    ]
                    found.append(_state(item, had))
            return found

        return await in_background(look)

    def _new(self, version: Version) -> RankedItems:
        size = (version.embedding_size or 0) if self.most_new and QUERY in version.abilities else 0
        items, first = version.model.items or 0, version.model.known_items or 0
        return RankedItems(
            version.label, version.embedding_space, size, version.vocabulary, items=items, first_id=first
        )

    async def _use(self, listed: KeyList) -> None:
        async with self._lock:
            self._keys = listed
            for version, items in tuple(self._versions.items()):
                await in_background(items.hidden.read, listed)
                await self._put_in_force(version, items)

    async def _follow(self, changes: Changes) -> None:
        await self._take_up(lambda items: items.hidden.follow(changes))

    async def _follow_new(self, changes: NewChanges) -> None:
        await self._take_up(lambda items: items.new.follow(changes))

    async def _take_up(self, change: Callable[[_Items], None]) -> None:
        def taken_up(items: _Items) -> tuple[ItemMask | None, NewItems | None]:
            change(items)
            return items.state()

        async with self._lock:
            for version, items in tuple(self._versions.items()):
                version.offer(*await in_background(taken_up, items))

    async def _put_in_force(self, version: Version, items: _Items) -> None:
        version.offer(*await in_background(items.state))
        shelf = _shelf(version, items)
        if self._keys is not None or shelf.hidden:
            log.info(
                "items hidden",
                model=version.label,
                hidden=shelf.hidden,
                unknown=shelf.unknown,
                such_as=items.hidden.some_unknown,
            )
        if shelf.new or shelf.in_catalogue:
            log.info("new items", model=version.label, ranked=shelf.new, in_catalogue=shelf.in_catalogue)
        most = version.model.max_k
        if shelf.hidden and "candidates" not in version.abilities and most < (version.model.items or math.inf):
            log.warning(
                "hidden items may leave too few for an answer: the model has no input `candidates`",
                model=version.label,
                of=most,
            )


def _shelf(version: Version, items: _Items) -> Shelf:
    hidden = sum(mask.items - mask.count for mask in version.masks)
    new = 0 if version.beside is None else len(version.beside.items)
    return Shelf(hidden, items.hidden.unknown, new, items.new.in_catalogue)


def _known(version: Version, keys: Sequence[str]) -> Sequence[int | None]:
    return [None] * len(keys) if version.vocabulary is None else version.vocabulary.ids(keys)


def _state(item: KeptItem, had: Iterable[bool]) -> NewItemState:
    """The state of an item; `had` says of each version that takes its vector whether it has the item itself."""
    had = list(had)
    if had:
        return "in_catalogue" if all(had) else "ranked"
    return "waiting" if item.space is None else "left_behind"
