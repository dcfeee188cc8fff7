"""Open the table of items that the settings name, if the libraries for it are there."""

from __future__ import annotations

from recommender.catalogue.attributes.filters import Tables
from recommender.errors import StartError
from recommender.settings.catalogue import CatalogueSettings

EXTRA = "recommender[catalogue]"
"""The extra whose libraries tables and filters need."""


def open_tables(settings: CatalogueSettings) -> Tables | None:
    """The table of items, of which nothing is read yet; None if the settings name none.

    Raises StartError if its libraries are not installed.
    """
    if settings.items is None:
        return None
    try:
        from recommender.catalogue.attributes.tables import FollowedTables  # noqa: PLC0415 (its libraries are an extra)
    except ImportError as error:
        raise StartError(
            f"RECOMMENDER_ITEMS needs {error.name}, which is not installed: install the extra {EXTRA}, or unset it"
        ) from error
    return FollowedTables(
        settings.items, interval=settings.items_poll_ms / 1e3, cache_bytes=settings.filter_cache_mb * 1_000_000
    )
