"""Open calls of the ASGI edge: a sweep ends late calls and checks long ones for a disconnect.

A call is checked each time its age has grown by half, so a disconnect is noticed late by half the call's age, at most
`HttpCall.longest_look`. Calls shorter than a sweep are never checked, and idle ones cost nothing between two checks.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time

from recommender.edges.envoy.call import SWEEP_SECONDS, HttpCall
from recommender.edges.uploads import Uploads


class OpenCalls:
    """The open calls, and `uploads`: those of which part of a message has come."""

    def __init__(self, max_message_bytes: int) -> None:
        self.uploads: Uploads[HttpCall] = Uploads(max_message_bytes, self._sweep_soon, lambda call: call.client)
        self._young: set[HttpCall] = set()
        """Calls that no sweep has seen; most end before one does."""
        self._seen: set[HttpCall] = set()
        """All others."""
        self._looks: list[tuple[float, int, HttpCall]] = []
        self._turn = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._failing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._young) + len(self._seen)

    def begin(self, call: HttpCall) -> None:
        """Add a call."""
        self._young.add(call)
        if not self._soon:
            self._sweep_in(SWEEP_SECONDS)

    def end(self, call: HttpCall) -> None:
        """Forget a call that has ended."""
        if call in self._young:
            self._young.remove(call)
        else:
            self._seen.discard(call)
        self.uploads.end(call)

    def _sweep_soon(self) -> None:
        if not self._soon:
            self._sweep_in(SWEEP_SECONDS)

    def _sweep_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._soon = seconds <= SWEEP_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        young, self._young = self._young, set()
        self._seen |= young
        for call in young:
            self._look_later(call)
        for call, reason in self.uploads.ended(now):
            self._expire(call, reason)
        looks = self._looks
        while looks and looks[0][0] <= now:
            _, _, call = heapq.heappop(looks)
            if now > call.deadline:
                self._expire(call)
            else:
                call.ask(now)
            self._look_later(call)
        self._timer = None
        self._soon = False
        if looks:
            wait = SWEEP_SECONDS if self.uploads else looks[0][0] - now
            self._sweep_in(max(wait, SWEEP_SECONDS))

    def _look_later(self, call: HttpCall) -> None:
        if call in self._seen:
            heapq.heappush(self._looks, (min(call.look_at, call.deadline), next(self._turn), call))

    def _expire(self, call: HttpCall, reason: Exception | None = None) -> None:
        failing = call.expire(reason)
        if failing is not None:
            self._failing.add(failing)
            failing.add_done_callback(self._failing.discard)
