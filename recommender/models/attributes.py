"""Attributes of items: the table that the settings name, joined with every version that is loaded."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from recommender.catalogue.attributes.filters import Tables, TableStatistics
from recommender.models.version import Version
from recommender.new_items import AttributeValues
from recommender.threads import in_background

log = structlog.get_logger(__name__)


class ItemAttributes:
    """Gives each version what is known of its items; nothing without `tables`."""

    what = "items"

    def __init__(self, tables: Tables | None = None) -> None:
        self._tables = tables

    async def start(self) -> None:
        """Read the table, and follow it until `close`. Raises StartError if it cannot be read."""
        if self._tables is not None:
            await self._tables.start()

    async def close(self) -> None:
        """Follow it no longer; a second call is a no-op."""
        if self._tables is not None:
            await self._tables.close()

    async def attach(self, version: Version) -> None:
        """Join a version's items with the table, before it answers requests."""
        model, vocabulary = version.model, version.vocabulary
        if self._tables is None:
            return
        if vocabulary is None or model.items is None:
            log.warning("the table of items is not for this model: it has no keys", model=version.label)
            return
        never = model.never_recommended | (set() if model.padding_id is None else {model.padding_id})
        version.attributes = await in_background(self._tables.attributes, vocabulary.ids, model.items, never)

    def faults(self, given: AttributeValues) -> Iterator[tuple[str, str]]:
        """Those of a new item's attributes that the table does not have, or not of that type, each with why."""
        return iter(()) if self._tables is None else self._tables.faults(given)

    def statistics(self) -> TableStatistics | None:
        """The table in use, and the filters up to now; None without a table."""
        return None if self._tables is None else self._tables.statistics()
