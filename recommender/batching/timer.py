"""One timer of the event loop for the deadlines of all callers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context


class DeadlineTimer:
    """Calls `expire(now)` when a watched deadline has passed, and continues with `next_deadline()`.

    `expire` is called at the deadline or just after it, or once too often: a deadline whose caller has left is still
    watched. If it raises, `failed` gets the error and nothing is watched. `clock` gives the seconds of deadlines.
    Callbacks run on the event loop in `context`.
    """

    def __init__(
        self,
        *,
        expire: Callable[[float], None],
        next_deadline: Callable[[], float],
        failed: Callable[[Exception], None],
        clock: Callable[[], float],
        context: Context,
    ) -> None:
        self.at = math.inf
        """The earliest watched deadline: only an earlier one needs `watch`. Infinite without deadlines."""
        self._expire = expire
        self._next_deadline = next_deadline
        self._failed = failed
        self._clock = clock
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def watch(self, deadline: float, now: float) -> None:
        """Watch a finite deadline that is before `at`."""
        self.cancel()
        self.at = deadline
        self._handle = self._loop.call_later(max(deadline - now, 0.0), self._fire, context=self._context)

    def cancel(self) -> None:
        """Watch no deadline."""
        self.at = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self.at = math.inf
        try:
            now = self._clock()
            self._expire(now)
            deadline = self._next_deadline()
            if deadline < self.at:
                self.watch(deadline, now)
        except Exception as error:  # noqa: BLE001 (a bug here must not leave callers waiting)
            self._failed(error)
