"""Open the table of items that the settings name, if the libraries for it are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recommender.catalogue.attributes.filters import Tables
from recommender.errors import StartError
from recommender.settings.catalogue import CatalogueSettings

if TYPE_CHECKING:
    from recommender.catalogue.attributes.own import OwnTables
    from recommender.catalogue.attributes.rows import NewRow
    from recommender.catalogue.attributes.table import ItemTable

EXTRA = "recommender[catalogue]"
"""The extra whose libraries tables and filters need."""


def open_tables(settings: CatalogueSettings) -> Tables | None:
    """The table of items, of which nothing is read yet; None if the settings name none.

    Raises StartError if its libraries are not installed.
    """
    if settings.items is None:
        return None
    with _installed():
        from recommender.catalogue.attributes.tables import FollowedTables  # noqa: PLC0415 (its libraries are an extra)
    return FollowedTables(
        settings.items, interval=settings.items_poll_ms / 1e3, cache_bytes=settings.filter_cache_mb * 1_000_000
    )


def own_tables(cache_mb: int) -> OwnTables:
    """The tables of versions that bring their own; filters may take so many megabytes.

    Raises StartError if the libraries are not installed.
    """
    with _installed():
        from recommender.catalogue.attributes.own import OwnTables  # noqa: PLC0415 (its libraries are an extra)
    return OwnTables(cache_bytes=cache_mb * 1_000_000)


def reader(*, of_version: bool = False) -> Callable[[Path], ItemTable]:
    """Read a table of items, which may be by id if it is that `of_version`; blocks.

    Raises StartError if the libraries are not installed.
    """
    with _installed():
        from recommender.catalogue.attributes.reading import read_table  # noqa: PLC0415 (its libraries are an extra)
    return partial(read_table, of_version=of_version)


def check_own_table(path: Path, items: int, *, has_keys: bool) -> None:
    """Raise StartError unless a file is a table for a version of `items` items, or if the libraries are missing."""
    with _installed():
        from recommender.catalogue.attributes.own import read_own  # noqa: PLC0415 (its libraries are an extra)
    read_own(path, items, has_keys=has_keys)


def rows_reader() -> Callable[[Path], Iterator[NewRow]]:
    """Read the rows of a file of new items; blocks. Raises StartError if the libraries are not installed."""
    with _installed():
        from recommender.catalogue.attributes.rows import read_rows  # noqa: PLC0415 (its libraries are an extra)
    return read_rows


@contextmanager
def _installed() -> Iterator[None]:
    """Raise StartError if a library cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise StartError(f"a table of items needs {error.name}, which is missing: install the extra {EXTRA}") from error
