"""Whether a batch that could start waits for more callers.

A run costs about the same for one row as for a few. A busy event loop has read more calls than have been submitted. So
a batch starts when callers stop arriving: after `_QUIET_TURNS` turns of the event loop without a new one. A turn of an
idle loop takes microseconds, so a lone caller hardly waits. A turn of a busy loop takes as long as the work in it,
which makes the batches of a busy server large. The wait is bounded by `longest`, by the rows after which another one
makes no row cheaper, and by the earliest deadline.

Those turns cost a lone caller a tenth of its CPU. If none of the last `_ALONE` batches was joined by a second caller, a
batch starts after `_ALONE_TURNS`, unless a caller arrives in these.
"""

from __future__ import annotations

_QUIET_TURNS = 20
_ALONE = 8
_ALONE_TURNS = 2
_ENOUGH = 32
"""Rows after which another one makes no row cheaper: measured, see docs/batching.md."""


class Gathering:
    """Decides in each turn of the loop whether to wait on: `longest` seconds at most, for `enough` rows at most."""

    def __init__(self, longest: float, enough: int) -> None:
        self._longest = longest
        self._enough = min(_ENOUGH, enough)
        self._since = 0.0
        self._most = 0
        self._quiet = 0
        self._alone = 0
        """Batches in a row that gathered only their first caller."""

    def begin(self, now: float) -> None:
        """Note that a batch could start from `now` on."""
        self._since = now
        self._alone = self._alone + 1 if self._most == 1 else 0
        self._most = 0
        self._quiet = 0

    def goes_on(self, waiting: int, now: float, hurry: float) -> bool:
        """Whether to look again in the loop's next turn; `hurry` is when the batch must have started."""
        if waiting > self._most:
            self._most = waiting
            self._quiet = 0
        else:
            self._quiet += 1
        turns = _ALONE_TURNS if waiting == 1 and self._alone >= _ALONE else _QUIET_TURNS
        return self._quiet < turns and 0 < waiting < self._enough and now - self._since < self._longest and now < hurry
