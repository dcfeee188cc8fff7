"""Hidden items, as calls hide, show and list them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import structlog
from protovalidate import Validator

from recommender.api.changes.reading import PAGE, check_label, place_of, token_of
from recommender.api.messages import check_few_fields, decoded, validate
from recommender.catalogue.availability.journal import Entry
from recommender.catalogue.availability.kept import KeptChanges
from recommender.errors import CatalogueFullError, InvalidRequestError, UnknownModelError, Violation
from recommender.models.availability import Availability
from recommender.recommend_api.v1 import catalogue_api_pb2 as api
from recommender.routing.router import Router

_MOST_FIELDS = 3_000
"""Room for lists of 1,000 items and other fields; ids that are not packed are a field each."""
_TOLD = 100

log = structlog.get_logger(__name__)

M = TypeVar("M", api.HideItemsRequest, api.ShowItemsRequest, api.ListHiddenItemsRequest)


class HiddenItemsCalls:
    """Answers the calls on hidden items with the journal of `availability`, which must have one.

    Each raises InvalidRequestError if the request is at fault, and what `KeptChanges.write` raises. `deadline` is on
    the monotonic clock.
    """

    def __init__(self, availability: Availability, kept: KeptChanges, router: Router) -> None:
        self._availability = availability
        self._kept = kept
        self._router = router
        self._validator = Validator()

    async def hide(self, message: bytes, deadline: float) -> api.HideItemsResponse:
        """Hide items. Raises UnknownModelError if the version that it names is not served."""
        request = self._read(api.HideItemsRequest, message)
        model = self._version_of(request.model, request.item_ids) if request.model else ""
        items = list(request.item_keys) or [str(item) for item in request.item_ids]
        try:
            written = await self._kept.write(model, items, hidden=True, deadline=deadline)
        except CatalogueFullError:
            log.warning("items not hidden: the limit of hidden items is reached", model=model, items=len(items))
            raise
        unknown = await self._availability.unknown(request.item_keys)
        log.info(
            "items hidden by a call", model=model, items=len(items), changed=written.changed, hidden=written.hidden
        )
        return api.HideItemsResponse(changed=written.changed, hidden=written.hidden, unknown_item_keys=unknown[:_TOLD])

    async def show(self, message: bytes, deadline: float) -> api.ShowItemsResponse:
        """Show items."""
        request = self._read(api.ShowItemsRequest, message)
        model = request.model
        if model:
            check_label(model, "ids are those of one")
            with suppress(UnknownModelError):  # what was hidden of a version that is gone may be shown
                model = self._router.route(model).label
        items = list(request.item_keys) or [str(item) for item in request.item_ids]
        written = await self._kept.write(model, items, hidden=False, deadline=deadline)
        log.info("items shown by a call", model=model, items=len(items), **written._asdict())
        return api.ShowItemsResponse(changed=written.changed, hidden=written.hidden)

    async def list_hidden(self, message: bytes, deadline: float) -> api.ListHiddenItemsResponse:
        """List a page of hidden items."""
        request = self._read(api.ListHiddenItemsRequest, message)
        size = request.page_size or PAGE
        place = place_of(request.page_token)
        entries = await self._kept.page(None if place is None else Entry(*place, hidden=True), size, deadline)
        return api.ListHiddenItemsResponse(
            items=[
                api.HiddenItem(item_id=int(entry.item), model=entry.model)
                if entry.model
                else api.HiddenItem(item_key=entry.item)
                for entry in entries
            ],
            next_page_token=token_of(entries[-1].model, entries[-1].item) if len(entries) == size else "",
        )

    def _read(self, kind: type[M], message: bytes) -> M:
        check_few_fields(kind, message, _MOST_FIELDS)
        request = decoded(kind, message)
        validate(self._validator, request)
        return request

    def _version_of(self, model: str, ids: Sequence[int]) -> str:
        """The label of the version that a request names, which must have items of these ids."""
        check_label(model, "ids are those of one")
        version = self._router.route(model)
        items = version.model.items or 0
        for place, item in enumerate(ids):
            if item >= items:
                raise InvalidRequestError(
                    Violation(f"item_ids[{place}]", f"{item} is not an item of {version.label}, which has {items}")
                )
        return version.label
