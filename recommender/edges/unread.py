"""Large replies that their callers have not read: bounded for each connection, and over all."""

from __future__ import annotations

from collections import Counter
from typing import Final

from recommender.errors import QuotaError

LARGE_BYTES: Final = 1 << 14
"""A reply of more bytes is counted: several times the largest to one request."""
CONNECTION_BYTES: Final = 1 << 25
"""What may be unread on one connection."""
_PROCESS_BYTES = 1 << 28
"""What may be unread in a process."""
_RETRY_SECONDS = 1.0


class Unread:
    """Bytes of large replies from when they are made until they are read."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def hold(self, connection: str, size: int) -> None:
        """Count a reply until `release`. Raises QuotaError if there is no room; each connection has for one."""
        held = self._held.get(connection, 0)
        if held and held + size > CONNECTION_BYTES:
            raise QuotaError("too many bytes of replies are unread on this connection", _RETRY_SECONDS)
        if self._held.total() + size > _PROCESS_BYTES:
            raise QuotaError("too many bytes of replies are unread", _RETRY_SECONDS)
        self._held[connection] += size

    def release(self, connection: str, size: int) -> None:
        """Count no more a reply that is read, or whose caller has left."""
        self._held[connection] -= size
        if self._held[connection] <= 0:
            del self._held[connection]
