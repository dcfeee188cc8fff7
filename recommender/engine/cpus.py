"""CPUs of a run: whether a small model takes one, or all that it may use. It is measured when the model loads.

Several CPUs end a run sooner, and take more CPU time, which the event loop then lacks. So both ways are tried beside a
thread that works as the event loop does for the rows of a run.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

_LOOP_SECONDS = 0.2e-3
"""CPU that a row takes on the event loop, about: a call of gRPC's."""
_LEAST_GAIN = 1.25
"""Several CPUs must end a run so many times as soon."""
_NO_LATER = 1.05
"""With the event loop's work they may take so many times as long."""
_TRIES = 21
_ENOUGH_SECONDS = 0.2
"""After so long no more tries."""
_BLOCK = bytes(1 << 15)


class Trial(NamedTuple):
    """Seconds from the start until a run had ended, and until the work beside it had ended too."""

    run: float
    both: float


def several_pay(one: Callable[[], object], several: Callable[[], object], rows: int) -> bool:
    """Run so many rows in turns on one CPU and on several, and tell whether several pay; blocks.

    Raises what a run raises.
    """
    tried: tuple[list[Trial], list[Trial]] = ([], [])
    with ThreadPoolExecutor(1, "beside") as beside:
        ends = time.perf_counter() + _ENOUGH_SECONDS
        for _ in range(_TRIES):
            for run, trials in zip((one, several), tried, strict=True):
                started = time.perf_counter()
                work = beside.submit(_work, rows * _LOOP_SECONDS)
                run()
                ended = time.perf_counter() - started
                work.result()
                trials.append(Trial(ended, time.perf_counter() - started))
            if time.perf_counter() > ends:
                break
    return pay(*tried)


def pay(one: Sequence[Trial], several: Sequence[Trial]) -> bool:
    """Whether several CPUs pay by these trials: runs end much sooner, and the work beside them no later."""
    alone, divided = (Trial(*map(statistics.median, zip(*trials, strict=True))) for trials in (one, several))
    return alone.run >= _LEAST_GAIN * divided.run and divided.both <= _NO_LATER * alone.both


def _work(seconds: float) -> None:
    """Take so much CPU, and leave the GIL to others meanwhile."""
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        hashlib.sha256(_BLOCK)  # of that many bytes without the GIL
