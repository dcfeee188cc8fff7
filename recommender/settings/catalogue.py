"""Settings of the catalogue: which items nobody gets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recommender.settings.group import Group


class CatalogueSettings(Group):
    """What availability reads."""

    hidden_items: str = ""
    """File, or http(s) URL, of items that nobody gets: text, a key a line. It is followed: docs/catalogue.md. A server
    does not start without it, and keeps the last list while it cannot be read. Empty: none."""
    hidden_items_poll_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 400
    """Milliseconds between two looks at RECOMMENDER_HIDDEN_ITEMS: a stat of the file, or a request with If-None-Match.
    A change is in force after so long and the milliseconds that its keys take."""
