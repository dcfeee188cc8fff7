"""A server behind which every request fails, with the error in ERRORS at the place of the sent item."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from recommender.api.service import RecommenderService
from recommender.edges.calls import Calls
from recommender.edges.grpc_aio.listener import GrpcListener
from recommender.edges.listener import Listener, MakeListener
from recommender.edges.methods import Methods
from recommender.errors import (
    BacklogFullError,
    CatalogueFullError,
    DeadlineError,
    EngineError,
    EngineHungError,
    InvalidRequestError,
    PermissionDeniedError,
    QuotaError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    Violation,
)
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server import embedded
from recommender.server.process import ExitCode
from recommender.settings.settings import Settings

ERRORS = (
    InvalidRequestError(Violation("limit", "is odd")),
    UnknownModelError("no such model"),
    BacklogFullError(7, retry_after=0.0123),
    QuotaError("this token may send 7 requests a second", retry_after=0.0123),
    UnauthenticatedError("no token"),
    PermissionDeniedError("another scope"),
    CatalogueFullError("no more fit"),
    DeadlineError("too late"),
    UnavailableError("not now"),
    EngineError("secret of the engine"),
    EngineHungError("secret of the engine"),
    ZeroDivisionError("secret of a bug"),
)


class FailingService:
    """A service that raises on every request."""

    async def recommend(self, request: api.RecommendRequest, *_: object) -> api.RecommendResponse:
        raise ERRORS[request.item_ids[0]]


class FailingServer:
    """A server that listens and loads nothing. A host of 127.0.0.2 means that it never ends loading."""

    def __init__(self, settings: Settings, listener: MakeListener | None = None, _otlp: object = None) -> None:
        self._settings = settings
        self._methods = Methods(Calls(), default_timeout=5.0, most_open=1)
        self._listener: Listener = (
            GrpcListener(self._methods, settings.network) if listener is None else listener(self._methods)
        )
        self._stop = asyncio.Event()
        self.port = self.metrics_port = 0

    async def start(self) -> None:
        self.port = await self._listener.listen(self._settings.network.host, self._settings.network.port)
        if self._settings.network.host != "127.0.0.2":
            self._methods.open(cast("RecommenderService", FailingService()))

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> ExitCode:
        await self._stop.wait()
        return ExitCode.DRAINED

    async def close(self) -> bool:
        await self._listener.stop(0)
        return True


embedded.Server = cast("Any", FailingServer)  # type: ignore[attr-defined]
app = embedded.Embedded()
