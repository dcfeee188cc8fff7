"""Large messages while they are answered, and large replies until they are read: bounded for each caller and in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from recommender.errors import QuotaError

LARGE_BYTES: Final = 1 << 14
"""A message or reply of more bytes is counted: several times the largest of one request."""
CONNECTION_BYTES: Final = 1 << 25
"""Most bytes that one connection may hold."""
PROCESS_BYTES: Final = 1 << 28
"""Most bytes that a process holds for all connections."""
_RETRY_SECONDS = 1.0


class Held:
    """Bytes held for callers. A connection is named by its caller's address, a colon and a port.

    An address may hold at most as much as it leaves free, so a few callers cannot use up the whole.
    """

    def __init__(self) -> None:
        self._of_connection: Counter[str] = Counter()
        self._of_address: Counter[str] = Counter()
        self._total = 0

    def hold(self, connection: str, size: int) -> None:
        """Count bytes until `release`. Raises QuotaError if there is no room; each connection has for one reply."""
        held = self._of_connection.get(connection, 0)
        if held and held + size > CONNECTION_BYTES:
            raise QuotaError("too many bytes of calls are held on this connection", _RETRY_SECONDS)
        address = _address_of(connection)
        if self._of_address.get(address, 0) + size > PROCESS_BYTES - self._total:
            raise QuotaError("too many bytes of calls are held for this address, or for all", _RETRY_SECONDS)
        self._of_connection[connection] += size
        self._of_address[address] += size
        self._total += size

    def release(self, connection: str, size: int) -> None:
        """Count bytes no more: they are read, or the caller has left."""
        self._total -= size
        for held, name in ((self._of_connection, connection), (self._of_address, _address_of(connection))):
            held[name] -= size
            if held[name] <= 0:
                del held[name]

    @contextmanager
    def holding(self, connection: str, size: int) -> Iterator[None]:
        """Count bytes meanwhile. Raises QuotaError if there is no room."""
        self.hold(connection, size)
        try:
            yield
        finally:
            self.release(connection, size)


def _address_of(connection: str) -> str:
    return connection.rpartition(":")[0]
