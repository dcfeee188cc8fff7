"""Open the table of items that the settings name, if the libraries for it are there."""

from __future__ import annotations

from pathlib import Path

from recommender.catalogue.filters import Tables
from recommender.errors import StartError

EXTRA = "recommender[catalogue]"
"""The extra whose libraries tables and filters need."""


def open_tables(path: Path, *, interval: float, cache_bytes: int) -> Tables:
    """The table of items in a file, which is looked at every `interval` seconds; filters may take `cache_bytes`.

    Raises StartError if the libraries are not installed. Must run on the event loop.
    """
    try:
        from recommender.catalogue.tables import FollowedTables  # noqa: PLC0415 (its libraries are an extra)
    except ImportError as error:
        raise StartError(
            f"RECOMMENDER_ITEMS needs {error.name}, which is not installed: install the extra {EXTRA}, or unset it"
        ) from error
    return FollowedTables(path, interval=interval, cache_bytes=cache_bytes)
