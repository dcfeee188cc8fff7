"""The RPCs of CatalogueService: what each asks of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from google.protobuf.message import Message

from recommender.api.changes.service import CatalogueService
from recommender.edges.method import Answer
from recommender.recommend_api.v1 import catalogue_api_pb2 as api

SERVICE_NAME: Final = api.DESCRIPTOR.services_by_name["CatalogueService"].full_name


class Catalogue:
    """Answers the RPCs. `opened` gives the service, or raises UnavailableError until there is one."""

    def __init__(self, opened: Callable[[], CatalogueService]) -> None:
        self._opened = opened

    def answers(self) -> Iterator[tuple[str, Answer]]:
        """The RPCs by name."""
        yield "HideItems", self._hide
        yield "ShowItems", self._show
        yield "ListHiddenItems", self._list_hidden
        yield "UpsertItems", self._upsert
        yield "RemoveItems", self._remove
        yield "ListNewItems", self._list_new

    def _hide(self, message: bytes, deadline: float, _request_id: str) -> Awaitable[Message]:
        return self._opened().hidden.hide(message, deadline)

    def _show(self, message: bytes, deadline: float, _request_id: str) -> Awaitable[Message]:
        return self._opened().hidden.show(message, deadline)

    def _list_hidden(self, message: bytes, deadline: float, _request_id: str) -> Awaitable[Message]:
        return self._opened().hidden.list_hidden(message, deadline)

    def _upsert(self, message: bytes, deadline: float, _request_id: str) -> Awaitable[Message]:
        return self._opened().new.upsert(message, deadline)

    def _remove(self, message: bytes, deadline: float, _request_id: str) -> Awaitable[Message]:
        return self._opened().new.remove(message, deadline)

    def _list_new(self, message: bytes, deadline: float, _request_id: str) -> Awaitable[Message]:
        return self._opened().new.list_new(message, deadline)
