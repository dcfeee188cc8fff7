"""A client of Envoy's administration interface on its Unix socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

_TIMEOUT_SECONDS = 10.0


class EnvoyAdmin:
    """Asks one Envoy. Every method raises OSError if it does not answer within `patience` seconds."""

    def __init__(self, path: Path, *, patience: float = _TIMEOUT_SECONDS) -> None:
        self._path = path
        self._patience = patience

    async def port(self, listener: str) -> int | None:
        """Return the port of a listener; None until it takes connections."""
        status, _ = await self._ask("GET", "/ready")
        if status != http.HTTPStatus.OK:
            return None
        _, body = await self._ask("GET", "/listeners?format=json")
        for found in json.loads(body).get("listener_statuses", ()):
            if found["name"] == listener:
                return int(found["local_address"]["socket_address"]["port_value"])
        return None

    async def counts(self, prefix: str, names: Iterable[str]) -> dict[str, int]:
        """Read the counters and gauges called `prefix` + name, by name."""
        status, body = await self._ask("GET", f"/stats?format=json&filter={quote('^' + re.escape(prefix))}")
        try:
            stats = {found["name"]: found for found in json.loads(body)["stats"] if "name" in found}
            return {name: int(stats[prefix + name]["value"]) for name in names}
        except (ValueError, KeyError) as error:
            raise OSError(f"Envoy's administration answered {status} without what was asked: {error!r}") from error

    async def turn_away(self) -> None:
        """Ask callers on open connections, as they are answered, to reconnect elsewhere."""
        await self._ask("POST", "/healthcheck/fail")

    async def close_listeners(self) -> None:
        """Accept no more connections; open ones stay."""
        await self._ask("POST", "/drain_listeners")

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._ask_now, method, path)

    def _ask_now(self, method: str, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path, self._patience)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(f"Envoy's administration answered no HTTP: {error!r}") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
