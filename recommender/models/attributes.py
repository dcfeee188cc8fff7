"""Attributes of items: the table that the settings name, or the one that a version's card lists."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from recommender.catalogue.attributes.filters import Attributes, Tables, TableStatistics
from recommender.catalogue.attributes.opening import open_tables, own_tables
from recommender.errors import ModelError, StartError
from recommender.models.version import Version
from recommender.new_items import AttributeValues
from recommender.settings.catalogue import CatalogueSettings
from recommender.threads import in_background

if TYPE_CHECKING:
    from recommender.catalogue.attributes.own import OwnTables

log = structlog.get_logger(__name__)


class ItemAttributes:
    """Gives each version its items' attributes: from `tables`, or from its own table without them.

    Filters over tables of versions may take `cache_mb` megabytes.
    """

    what = "items"

    def __init__(self, tables: Tables | None = None, *, cache_mb: int = 1) -> None:
        self._tables = tables
        self._cache_mb = cache_mb
        self._own: OwnTables | None = None
        self._opening = threading.Lock()
        """Versions of several models may be read at once, each on its thread."""

    @classmethod
    def of(cls, settings: CatalogueSettings) -> ItemAttributes:
        """Make what these settings name; reads nothing yet. Raises StartError if libraries are missing."""
        return cls(open_tables(settings), cache_mb=settings.filter_cache_mb)

    async def start(self) -> None:
        """Read the table, and follow it until `close`. Raises StartError if it cannot be read."""
        if self._tables is not None:
            await self._tables.start()

    async def close(self) -> None:
        """Follow it no longer; a second call is a no-op."""
        if self._tables is not None:
            await self._tables.close()

    async def attach(self, version: Version) -> None:
        """Join a version's items with a table, before it answers requests.

        Raises ModelError if that is the version's own, and is not valid.
        """
        model, vocabulary, own = version.model, version.vocabulary, version.items_table
        if model.items is None or (vocabulary is None and own is None):
            if self._tables is not None:
                log.warning("the table of items is not for this model: it has no keys", model=version.label)
            return
        never = model.never_recommended | (set() if model.padding_id is None else {model.padding_id})
        if self._tables is not None and vocabulary is not None:
            if own is not None:
                log.warning(
                    "the model's own table of items is not used: RECOMMENDER_ITEMS names another",
                    model=version.label,
                    path=str(own),
                )
            version.attributes = await in_background(self._tables.attributes, vocabulary.ids, model.items, never)
        elif own is not None:
            version.attributes = await in_background(self._of_version, version, own, model.items, never)

    def faults(self, given: AttributeValues, version: Version | None) -> Iterator[tuple[str, str]]:
        """New item's attributes that the table cannot hold, with reasons; `version` is the item's, if served."""
        if version is not None and version.attributes is not None:
            return version.attributes.faults(given)
        return iter(()) if self._tables is None else self._tables.faults(given)

    def statistics(self) -> TableStatistics | None:
        """The table in use, or those of versions, and the filters so far; None without a table."""
        if self._tables is not None:
            return self._tables.statistics()
        return None if self._own is None else self._own.statistics()

    def _of_version(self, version: Version, path: Path, items: int, never: frozenset[int]) -> Attributes | None:
        """Read a version's own table; returns None, with a warning, if libraries are missing."""
        try:
            with self._opening:
                self._own = own = self._own or own_tables(self._cache_mb)
        except StartError as error:
            log.warning(
                "the model's own table of items is not read, so filters are refused",
                model=version.label,
                reason=str(error),
            )
            return None
        ids = None if version.vocabulary is None else version.vocabulary.ids
        try:
            return own.attributes(path, ids, items, never)
        except StartError as error:
            raise ModelError(str(error)) from error
