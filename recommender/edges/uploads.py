"""Messages that are coming in: how long one may take, and how many may take long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from recommender.errors import DeadlineError, QuotaError

MESSAGE_SECONDS: Final = 10.0
"""Most seconds for a call's message to arrive, whatever its deadline."""
_HELD_BYTES = 1 << 28
"""Most bytes that incomplete messages may hold in a process, apart from young ones."""
_MOST_ON_CONNECTION = 16
"""How many messages of one connection may be slow."""
_YOUNG_SECONDS = 0.25
"""A message that takes longer is slow."""
_RETRY_SECONDS = 1.0

K = TypeVar("K")


class Uploads(Generic[K]):
    """The calls of a server whose message is still arriving, by age.

    A late one ends. If more are slow than fit into memory with `max_message_bytes` each, or than one connection may
    have, the oldest end too: a regular caller's message arrives right after its headers. `wake` is called when the
    first one begins: ask for those that `ended` soon, and again while there are any.
    """

    def __init__(
        self, max_message_bytes: int, wake: Callable[[], None], connection_of: Callable[[K], Hashable] = id
    ) -> None:
        self._most_slow = max(1, _HELD_BYTES // max_message_bytes)
        self._connection_of = connection_of
        self._wake = wake
        self._coming: dict[K, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._coming)

    def begin(self, call: K, now: float, deadline: float) -> None:
        """Note that a message is coming in until this deadline, and MESSAGE_SECONDS at most; a no-op if it is noted."""
        if not self._coming:
            self._wake()
        self._coming.setdefault(call, (now, min(deadline, now + MESSAGE_SECONDS)))

    def end(self, call: K) -> None:
        """Forget a message that is complete or given up; a no-op if unknown."""
        self._coming.pop(call, None)

    def ended(self, now: float) -> list[tuple[K, Exception]]:
        """Remove the calls whose message takes too long, and return them with the reason."""
        over: list[tuple[K, Exception]] = []
        crowd = len(self._coming) - self._most_slow
        slow = {
            call: self._connection_of(call) for call, (began, _) in self._coming.items() if now - began > _YOUNG_SECONDS
        }
        on_connection = Counter(slow.values())
        for call, (_, deadline) in self._coming.items():
            connection = slow.get(call)
            if now > deadline:
                over.append((call, DeadlineError("the deadline passed before the message was complete")))
            elif connection is not None and (len(over) < crowd or on_connection[connection] > _MOST_ON_CONNECTION):
                over.append((call, QuotaError("too many messages are coming in slowly", _RETRY_SECONDS)))
            else:
                continue
            on_connection[connection] -= 1
        for call, _ in over:
            del self._coming[call]
        return over
