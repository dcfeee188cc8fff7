"""Settings of the catalogue: attributes, hidden items, new items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from recommender.errors import SettingsError
from recommender.settings.group import Group
from recommender.settings.network import NetworkSettings


class CatalogueSettings(Group):
    """Settings of filters, hidden items and new items."""

    items: Path | None = None
    """Table of the items' attributes, for filters in requests: a .parquet, .csv or .jsonl file whose first column is
    `key`. Changes are followed: docs/catalogue.md. Needs the extra recommender[catalogue]. A server does not start
    without the file, and keeps the last table while a newer one is unreadable. Empty: none."""
    items_poll_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 1_000
    """Milliseconds between two checks of RECOMMENDER_ITEMS, each a stat of the file. A changed file is read and joined
    with each model's keys, which takes some seconds for a million items."""
    filter_cache_mb: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most megabytes for cached results of filters; the least recently used are dropped first. A result takes a bit an
    item: 125 kB for a million."""

    hidden_items: str = ""
    """File, or http(s) URL, of items that are hidden from every answer: text, one key a line. Changes are followed:
    docs/catalogue.md. A server does not start without it, and keeps the last list while it is unreadable. Empty:
    none."""
    hidden_items_poll_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 400
    """Milliseconds between two checks of RECOMMENDER_HIDDEN_ITEMS: a stat of the file, or a request with If-None-Match.
    A change is in force after that time and the milliseconds to look its keys up."""
    catalogue_journal: Path | None = None
    """SQLite file, on a local disk, of the items that calls hide and add; created if missing. Workers share it. Its
    content stays in force without RECOMMENDER_CATALOGUE_WRITES too. Empty: none."""
    catalogue_writes: bool = False
    """Whether calls may hide, show and add items (CatalogueService, docs/catalogue.md). They need a journal
    (RECOMMENDER_CATALOGUE_JOURNAL), and tokens if other machines reach the port."""

    max_new_items: Annotated[int, Field(ge=0, le=200_000)] = 10_000
    """Most new items that calls may add, of all versions together. Each batch multiplies its rows with all new items of
    its version. Beyond it items that versions left behind are dropped first, then calls are refused."""

    def check_beside(self, network: NetworkSettings) -> None:
        """Hold these settings against each other and the port's. Raises SettingsError."""
        if not self.catalogue_writes:
            return
        if self.catalogue_journal is None:
            raise SettingsError(
                "RECOMMENDER_CATALOGUE_WRITES=true needs RECOMMENDER_CATALOGUE_JOURNAL: the file that keeps the changes"
            )
        if network.tokens_file is None and network.beyond_this_machine:
            raise SettingsError(
                f"RECOMMENDER_CATALOGUE_WRITES=true at RECOMMENDER_HOST={network.host} would let any caller hide "
                "items: set RECOMMENDER_TOKENS_FILE, with tokens of the scope `catalogue`, or "
                "RECOMMENDER_HOST=127.0.0.1"
            )
