"""A server in Envoy's process, with the interface of one in this process, over its port.

Envoy loads this module instead of `recommender.server.embedded`; tests ask on separate paths.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine, Mapping
from dataclasses import fields
from http.client import HTTPConnection
from typing import Any

from recommender.batching.statistics import Statistics
from recommender.domain import Model
from recommender.edges.envoy.asgi import Receive, Scope, Send
from recommender.server import embedded
from recommender.server.envoy import EnvoyServer
from recommender.server.process import ExitCode
from recommender.server.server import Server
from recommender.settings.settings import Settings

_TIMEOUT = 60.0


class Observed(embedded.Embedded):
    """The application of the server, and what is asked of it by tests."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if scope.get("path", "").startswith("/tests/"):
            return _answer(scope["path"], send)
        return super().__call__(scope, receive, send)


class _Found(Server):
    """A server with an address that tests can find."""

    last: Server

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _Found.last = self


async def _answer(path: str, send: Send) -> None:
    server = _Found.last
    if path == "/tests/statistics":
        seen = server.batcher.statistics()
        values = {field.name: getattr(seen, field.name) for field in fields(seen)}
        found: Any = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    elif path == "/tests/model":
        found = server.model
    elif path == "/tests/drain":
        await server.batcher.drain()
        found = None
    else:
        found = len(asyncio.all_tasks())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": pickle.dumps(found), "more_body": False})


embedded.Server = _Found  # type: ignore[attr-defined]
app = Observed()


class RemoteBatcher:
    """The batcher in Envoy's process."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection

    def statistics(self) -> Statistics:
        return Statistics(**_ask(self._connection, "statistics"))

    async def drain(self) -> None:
        await asyncio.to_thread(_ask, self._connection, "drain")


def _ask(connection: HTTPConnection, what: str) -> Any:
    connection.request("GET", f"/tests/{what}")
    return pickle.loads(connection.getresponse().read())  # noqa: S301 (from the server under test)


class RemoteServer:
    """An EnvoyServer that answers as a Server does."""

    def __init__(self, settings: Settings) -> None:
        self._envoy = EnvoyServer(settings, "tests.support.remote:app")
        self._plaintext = settings.network.tls_certificate is None
        self._connection = HTTPConnection(settings.network.host, 0, timeout=_TIMEOUT)

    @property
    def port(self) -> int:
        return self._envoy.port

    @property
    def metrics_port(self) -> int:
        return self._envoy.metrics_port

    @property
    def batcher(self) -> RemoteBatcher:
        return RemoteBatcher(self._connection)

    @property
    def model(self) -> Model:
        model: Model = _ask(self._connection, "model")
        return model

    def tasks(self) -> int:
        """How many tasks its event loop has, the one that counts included."""
        count: int = _ask(self._connection, "tasks")
        return count

    async def start(self) -> None:
        await self._envoy.start()
        # Open from now on, it can still ask when the server takes no more connections.
        self._connection.port = self.port
        if self._plaintext:
            # With a question: a connection that says nothing is closed.
            await asyncio.to_thread(_ask, self._connection, "tasks")

    def stop(self) -> None:
        self._envoy.stop()

    async def run(self) -> ExitCode:
        return await self._envoy.run()

    async def close(self) -> bool:
        self._connection.close()
        return await self._envoy.close()
