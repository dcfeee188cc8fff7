"""The part of ASGI that this edge uses, and the caller of a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NotRequired, TypeAlias, TypedDict

from recommender.security.access import AUTHORIZATION_KEY

_AUTHORIZATION = AUTHORIZATION_KEY.encode()

Client: TypeAlias = tuple[str, int]


class Scope(TypedDict):
    """The fields of an ASGI HTTP scope that are read here."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    client: NotRequired[Client | None]
    server: NotRequired[Client | None]


class Received(TypedDict, total=False):
    """An ASGI event of a request."""

    type: str
    body: bytes
    more_body: bool


Receive: TypeAlias = Callable[[], Awaitable[Received]]
Send: TypeAlias = Callable[[Mapping[str, object]], Awaitable[None]]
Lines: TypeAlias = list[tuple[bytes, bytes]]
Headers: TypeAlias = Mapping[bytes, bytes]


class HttpCaller:
    """The caller of a call."""

    __slots__ = ("_client", "_headers")

    def __init__(self, headers: Headers, client: Client | None) -> None:
        self._headers = headers
        self._client = client

    @property
    def authorization(self) -> str | None:
        """The caller's `authorization`; None if absent."""
        authorization = self._headers.get(_AUTHORIZATION)
        return None if authorization is None else authorization.decode("latin-1")

    @property
    def connection(self) -> str:
        """Names the caller's connection."""
        return connection_of(self._client)


def connection_of(client: Client | None) -> str:
    """Name the connection of a client, as its address, a colon and its port."""
    return "" if client is None else f"{client[0]}:{client[1]}"
