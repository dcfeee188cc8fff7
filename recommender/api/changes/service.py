"""CatalogueService: the calls on hidden and on new items."""

from __future__ import annotations

from dataclasses import dataclass

from recommender.api.changes.hidden import HiddenItemsCalls
from recommender.api.changes.new_items import NewItemsCalls
from recommender.models.attributes import ItemAttributes
from recommender.models.availability import Availability
from recommender.routing.router import Router


@dataclass(frozen=True, slots=True)
class CatalogueService:
    """Answers the messages of every RPC."""

    hidden: HiddenItemsCalls
    new: NewItemsCalls


def open_catalogue_service(
    availability: Availability, attributes: ItemAttributes, router: Router
) -> CatalogueService | None:
    """The service of a server; None if it has no journal."""
    kept = availability.kept
    if kept is None:
        return None
    return CatalogueService(
        HiddenItemsCalls(availability, kept, router),
        NewItemsCalls(availability, kept, attributes, router),
    )
