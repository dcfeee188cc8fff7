"""The kind of a list of hidden items: a URL, or else a file."""

from __future__ import annotations

from pathlib import Path

from recommender.catalogue.availability.lists import FileSource, ListSource


def open_list(place: str) -> ListSource | None:
    """The source that a place names; None if it is empty. Nothing is read yet."""
    if not place:
        return None
    if place.lower().startswith(("http://", "https://")):
        from recommender.catalogue.availability.remote import UrlSource  # noqa: PLC0415 (slow to import)

        return UrlSource(place)
    return FileSource(Path(place).expanduser())
