"""When a batch that could start waits for those who come just behind its first caller.

A run costs about the same for one row as for a few, and a loop that is busy reading calls has more of
them at hand than have been submitted. So a batch starts when callers stop coming: after `_QUIET_TURNS`
turns of the event loop in which nobody came. A turn of an idle loop takes microseconds, so a caller by
itself waits for next to nothing; a turn of a busy loop takes as long as the work in it, which is what
makes the batches of a busy server large. Bounded by `longest`, by a number of rows after which more
of them make a row no cheaper, and by the earliest deadline.
"""

from __future__ import annotations

_QUIET_TURNS = 20
_ENOUGH = 32
"""Rows after which company no longer makes a row cheaper: measured, see docs/batching.md."""


class Gathering:
    """Decides, turn by turn of the loop, whether to wait on; `longest` is in seconds, 0 never waits."""

    def __init__(self, longest: float, enough: int) -> None:
        self._longest = longest
        self._enough = min(_ENOUGH, enough)
        self._since = 0.0
        self._most = 0
        self._quiet = 0

    def begin(self, now: float) -> None:
        """A batch could start from `now` on."""
        self._since = now
        self._most = 0
        self._quiet = 0

    def goes_on(self, waiting: int, now: float, hurry: float) -> bool:
        """Whether to look again in the loop's next turn; `hurry` is when the batch must have started."""
        if waiting > self._most:
            self._most = waiting
            self._quiet = 0
        else:
            self._quiet += 1
        return (
            self._quiet < _QUIET_TURNS
            and 0 < waiting < self._enough
            and now - self._since < self._longest
            and now < hurry
        )
