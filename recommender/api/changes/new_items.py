"""New items, as calls bring, remove and list them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeAlias, TypeVar

import numpy as np
import structlog
from google.protobuf.message import DecodeError
from protovalidate import Validator

from recommender.api.changes.reading import PAGE, check_label, place_of, token_of
from recommender.api.messages import check_few_fields, decoded, malformed, validate
from recommender.api.wire import BYTES, fields
from recommender.catalogue.availability.kept import KeptChanges
from recommender.catalogue.new_items.journal import KeptItem, NewItem
from recommender.engine.contract import QUERY
from recommender.errors import (
    CatalogueFullError,
    InvalidRequestError,
    UnavailableError,
    UnknownModelError,
    Violation,
    quoted,
)
from recommender.models.attributes import ItemAttributes
from recommender.models.availability import Availability, NewItemState
from recommender.models.version import Version
from recommender.recommend_api.v1 import catalogue_api_pb2 as api
from recommender.routing.router import Router
from recommender.threads import in_background

_MOST_FIELDS = 3_000
_ITEMS, _VECTOR = 2, 2
"""Numbers of fields: the items of a request, and the vector of an item."""
_MOST_FIELDS_OF_ITEM = 128
"""Room for an item's attributes and other fields, but not for its vector, which takes its own bytes."""
_LONGEST_VECTOR = 65_536
_ATTRIBUTE_BYTES = 4_096
_NAMED = 10
"""A caller's status stays small."""
_STATES: Final[Mapping[NewItemState, api.NewItemState]] = {
    "ranked": api.NEW_ITEM_STATE_RANKED,
    "waiting": api.NEW_ITEM_STATE_WAITING,
    "left_behind": api.NEW_ITEM_STATE_LEFT_BEHIND,
    "in_catalogue": api.NEW_ITEM_STATE_IN_CATALOGUE,
}
_MAY_GO: Final = frozenset({"left_behind", "in_catalogue"})

log = structlog.get_logger(__name__)

Attribute: TypeAlias = bool | int | float | str | list[str]
M = TypeVar("M", api.RemoveItemsRequest, api.ListNewItemsRequest)


class NewItemsCalls:
    """Answers the calls on new items with the journal `kept`.

    Each raises InvalidRequestError if the request is at fault, and what `KeptChanges.change` raises. `deadline` is on
    the monotonic clock.
    """

    def __init__(
        self, availability: Availability, kept: KeptChanges, attributes: ItemAttributes, router: Router
    ) -> None:
        self._availability = availability
        self._kept = kept
        self._attributes = attributes
        self._router = router
        self._most = availability.most_new
        self._validator = Validator()

    async def upsert(self, message: bytes, deadline: float) -> api.UpsertItemsResponse:
        """Add items to a version, or replace them. Raises CatalogueFullError if there would be too many."""
        check_few_fields(api.UpsertItemsRequest, message, _MOST_FIELDS)
        # Hundreds of vectors take milliseconds, so off the event loop.
        request, items = await in_background(self._read_items, message)
        version = self._version(request.model)
        model, space = request.model, None
        if version is not None:
            model, space = version.label, version.embedding_space or ""
            await in_background(_check_fit, version, items)
        spared = self._availability.spared()
        try:
            done = await self._kept.change(
                lambda journal: journal.new_items.upsert(model, space, items, most=self._most, spared=spared), deadline
            )
        except CatalogueFullError:
            log.warning("new items refused: the limit is reached", model=model, items=len(items), most=self._most)
            raise
        log.info("items added by a call", model=model, waiting=version is None, **done._asdict())
        if done.dropped:
            log.warning("new items that versions left behind were dropped to make room", dropped=done.dropped)
        return api.UpsertItemsResponse(**done._asdict(), waiting=version is None)

    async def remove(self, message: bytes, deadline: float) -> api.RemoveItemsResponse:
        """Remove new items."""
        request = self._read(api.RemoveItemsRequest, message)
        if request.model:
            check_label(request.model, "new items are those of one")
        everything = await self._kept.read(lambda journal: journal.new_items.page(None, -1), deadline)
        named = set(request.item_keys)
        chosen = [
            item
            for item in everything
            if request.model in ("", item.model) and (request.left_behind or item.key in named)
        ]
        if request.left_behind:
            states = await self._availability.states(chosen)
            chosen = [item for item, state in zip(chosen, states, strict=True) if state in _MAY_GO]
        gone, left = await self._kept.change(
            lambda journal: journal.new_items.remove([(item.model, item.key) for item in chosen]), deadline
        )
        log.info("new items removed by a call", model=request.model, removed=gone, total=left)
        return api.RemoveItemsResponse(removed=gone, total=left)

    async def list_new(self, message: bytes, deadline: float) -> api.ListNewItemsResponse:
        """List a page of new items; the first page counts them all."""
        request = self._read(api.ListNewItemsRequest, message)
        size = request.page_size or PAGE
        after = place_of(request.page_token)
        most = -1 if after is None else size + 1
        items = await self._kept.read(lambda journal: journal.new_items.page(after, most), deadline)
        states = await self._availability.states(items)
        page = await in_background(_page, items[: size + 1], states, size)
        page.total, page.limit = self._kept.new_items if after else len(items), self._most
        if after is None:
            counts = Counter(states).items()
            page.counts.extend(api.StateCount(state=_STATES[state], items=count) for state, count in counts)
        return page

    def _read(self, kind: type[M], message: bytes) -> M:
        check_few_fields(kind, message, _MOST_FIELDS)
        request = decoded(kind, message)
        validate(self._validator, request)
        return request

    def _read_items(self, message: bytes) -> tuple[api.UpsertItemsRequest, list[NewItem]]:
        _check_few_fields_of_items(message)
        request = decoded(api.UpsertItemsRequest, message)
        vectors = [np.array(item.vector, np.float32) for item in request.items]
        # The validator would look at each of a million numbers.
        for place, (item, vector) in enumerate(zip(request.items, vectors, strict=True)):
            if not np.isfinite(vector).all():
                raise InvalidRequestError(Violation(f"items[{place}].vector", "it holds NaN or infinity"))
            if len(vector) > _LONGEST_VECTOR:
                raise InvalidRequestError(
                    Violation(f"items[{place}].vector", f"{len(vector)} numbers are more than {_LONGEST_VECTOR}")
                )
            del item.vector[1:]
        validate(self._validator, request)
        check_label(request.model, "vectors are those of one")
        items: list[NewItem] = []
        wrong: list[Violation] = []
        seen: set[str] = set()
        version = self._version(request.model)
        for place, (item, vector) in enumerate(zip(request.items, vectors, strict=True)):
            if item.key in seen:
                wrong.append(Violation(f"items[{place}].key", f"{quoted(item.key)} occurs twice"))
            seen.add(item.key)
            attributes, faults = self._attributes_of(item, place, version)
            wrong += faults
            items.append(NewItem(item.key, vector.tobytes(), item.bias, attributes))
        if wrong:
            raise InvalidRequestError(*wrong[:_NAMED])
        return request, items

    def _attributes_of(self, item: api.NewItem, place: int, version: Version | None) -> tuple[str, list[Violation]]:
        """The attributes of an item as JSON, and what is wrong with them."""
        if not item.attributes:
            return "{}", []
        field = f"items[{place}].attributes"
        given, faults = _attributes(item, field)
        faults += [Violation(f"{field}[{name}]", why) for name, why in self._attributes.faults(given, version)]
        written = json.dumps(given, ensure_ascii=False, separators=(",", ":"))
        if len(written.encode()) > _ATTRIBUTE_BYTES:
            faults.append(Violation(field, f"they take more than {_ATTRIBUTE_BYTES} bytes as JSON"))
        return written, faults

    def _version(self, model: str) -> Version | None:
        """The version that a request names; None if it is not served."""
        with suppress(UnknownModelError, UnavailableError):
            return self._router.route(model)
        return None


def _page(items: Sequence[KeptItem], states: Sequence[NewItemState], size: int) -> api.ListNewItemsResponse:
    """A page of so many items, of which there may be one more."""
    listed = [
        api.ListedItem(key=item.key, model=item.model, state=_STATES[state])
        for item, state in zip(items[:size], states, strict=False)
    ]
    following = token_of(listed[-1].model, listed[-1].key) if len(items) > size else ""
    return api.ListNewItemsResponse(items=listed, next_page_token=following)


def _check_few_fields_of_items(message: bytes) -> None:
    """Refuse an item of very many fields before it is parsed, as `check_few_fields` does a message."""
    try:
        for number, kind, start, end in fields(message):
            if number == _ITEMS and kind == BYTES:
                count = sum(each[0] != _VECTOR for each in fields(message[start:end]))
                if count > _MOST_FIELDS_OF_ITEM:
                    raise InvalidRequestError(
                        Violation("items", f"an item may have {_MOST_FIELDS_OF_ITEM} fields, and one has {count}")
                    )
    except DecodeError as error:
        raise malformed(api.UpsertItemsRequest) from error


def _check_fit(version: Version, items: Sequence[NewItem]) -> None:
    """Raise InvalidRequestError if a version cannot rank these items, or has them itself."""
    label, size, vocabulary = version.label, version.embedding_size, version.vocabulary
    if vocabulary is None:
        raise _refused(f"{label} has no keys, which new items are named by: export it with a vocabulary")
    if not size:
        raise _refused(f"{label} has no item table: its network returns scores and no user vector")
    if QUERY not in version.abilities:
        raise _refused(f"{label} gives no query vector, because it was exported by an older version: export it again")
    wrong = []
    known = vocabulary.ids([item.key for item in items])
    for place, (item, own) in enumerate(zip(items, known, strict=True)):
        if own is not None:
            wrong.append(
                Violation(
                    f"items[{place}].key",
                    f"{quoted(item.key)} is in the catalogue of {label}, whose vector the model file has",
                )
            )
        if item.size != size:
            wrong.append(Violation(f"items[{place}].vector", f"it has {item.size} numbers, and {label} {size}"))
    if wrong:
        raise InvalidRequestError(*wrong[:_NAMED])


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(Violation("model", why))


def _attributes(item: api.NewItem, field: str) -> tuple[dict[str, Attribute], list[Violation]]:
    """The attributes of an item, and those of unsupported types."""
    given: dict[str, Attribute] = {}
    wrong = []
    for name, value in item.attributes.items():
        match value.WhichOneof("value"):
            case "bool_value":
                given[name] = value.bool_value
            case "int64_value":
                given[name] = value.int64_value
            case "double_value":
                given[name] = value.double_value
            case "string_value":
                given[name] = value.string_value
            case "string_list":
                given[name] = list(value.string_list.values)
            case _:
                why = "an attribute is a bool, an int, a double, a timestamp, a string or a list of strings"
                wrong.append(Violation(f"{field}[{name}]", why))
    return given, wrong
