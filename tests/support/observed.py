"""A server in this process that sends to a collector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import pytest

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from recommender.server.server import Server
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings
from tests.support.collector import Collector, collecting
from tests.support.paths import WEIGHTS

TIMEOUT = 30.0
METHOD = "recommend_api.v1.RecommenderService/Recommend"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

Observed: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[Collector, Server, grpc.aio.Channel]]]
"""The type of the fixture `observed`."""


def observing(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """Start servers with these variables and settings; what they hold back is sent when they stop."""

    @asynccontextmanager
    async def started(
        variables: dict[str, str] | None = None, **settings: Any
    ) -> AsyncIterator[tuple[Collector, Server, grpc.aio.Channel]]:
        with collecting() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
            for key, text in (variables or {}).items():
                monkeypatch.setenv(key, text)
            server = Server(Settings.model_validate({"port": 0, "weights_dir": WEIGHTS, **settings}), otlp=Otlp.load())
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                    yield collector, server, channel
            finally:
                await server.close()

    return started


async def recommend(
    channel: grpc.aio.Channel, *metadata: tuple[str, str], item: int = 1
) -> tuple[api.RecommendResponse, dict[str, str | bytes]]:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{METHOD}")
    call = method(api.RecommendRequest(item_ids=[item]).SerializeToString(), metadata=metadata, timeout=TIMEOUT)
    reply = api.RecommendResponse.FromString(await call)
    return reply, dict(await call.trailing_metadata())
