"""Calls that need no token: a few on each connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from recommender.edges.method import Caller
from recommender.errors import QuotaError

MOST_CALLS: Final = 16
"""Calls without a token that may be open on one connection."""
_RETRY_SECONDS = 1.0


class Guests:
    """Lets callers in without a token."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[None]:
        """Let a call in. Raises QuotaError if MOST_CALLS are open on its connection."""
        connection = caller.connection
        if self._open[connection] >= MOST_CALLS:
            raise QuotaError(f"{MOST_CALLS} calls without a token are open on this connection", _RETRY_SECONDS)
        self._open[connection] += 1
        try:
            yield
        finally:
            self._open[connection] -= 1
            if not self._open[connection]:
                del self._open[connection]
