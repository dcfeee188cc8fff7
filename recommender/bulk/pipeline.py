"""Read, rank and write at the same time: one thread reads, some rank, one writes, with bounded queues between.

Parts are committed in their order. The last batch of a part waits until the part before it is committed, so at most one
part is ranked and not committed. When one thread ends early, all end.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from recommender.bulk.answers import Answers
from recommender.bulk.batches import PlainBatch, QueryBatch
from recommender.bulk.errors import BulkError
from recommender.bulk.scoring import Task

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 5.0
_SWITCH_SECONDS = 0.0005
"""The longest time for which a thread that returns from a run waits for the GIL."""


class Unit(Protocol):
    """A part on its way: what was read of it."""

    @property
    def task(self) -> Task:
        """Its batches and answers."""


U = TypeVar("U", bound=Unit)
T = TypeVar("T")


STOPPED = "the job was stopped: the same command continues from there"


class StoppedError(BulkError):
    """A signal stopped the job."""


@dataclass(slots=True, eq=False)
class _Moving(Generic[U]):
    """A part in the pipeline. `before` is committed before its last batch is ranked."""

    unit: U
    before: threading.Event
    left: int
    next: int = 0
    committed: threading.Event = field(default_factory=threading.Event)


class Pipeline(Generic[U]):
    """Moves the parts of `read` through `rank`, on so many `threads`, to `commit`.

    A batch that takes more than `longest` seconds ends it all: the engine hangs. `seconds` has the time of each batch.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[U]],
        rank: Callable[[PlainBatch | QueryBatch, Answers], None],
        commit: Callable[[U], None],
        *,
        threads: int,
        longest: float,
    ) -> None:
        self.seconds = array("d")
        self.ranked = 0
        """Number of ranked rows, without those that needed no model."""
        self._read = read
        self._rank = rank
        self._commit = commit
        self._longest = longest
        self._ready: queue.Queue[_Moving[U] | None] = queue.Queue(1)
        self._ranked: queue.Queue[_Moving[U] | None] = queue.Queue(1)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        """Held by the thread that looks for the next batch, also while there is none."""
        self._current: _Moving[U] | None = None
        self._exhausted = False
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._began: dict[int, float] = {}
        works = [self._reading, self._writing, *[self._ranking] * threads]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"score-{place}", daemon=True)
            for place, work in enumerate(works)
        ]
        self._rankers = threads

    def run(self, tick: Callable[[], None]) -> None:
        """Run to the end; `tick` is called some times a second.

        Raises what a thread raised, StoppedError after `stop`, BulkError if the engine hangs.
        """
        patience, usual = _JOIN_SECONDS, sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            for thread in self._threads:
                thread.start()
            while not self._ended.wait(_POLL_SECONDS) and not self._stop.is_set():
                tick()
                if self._hangs():
                    patience = 0.0
                    raise BulkError(
                        f"a batch has taken more than {self._longest:g} s (RECOMMENDER_ENGINE_TIMEOUT_MS): "
                        "the engine hangs"
                    )
        finally:
            self._stop.set()
            sys.setswitchinterval(usual)
            deadline = time.monotonic() + patience
            for thread in self._threads:
                thread.join(max(deadline - time.monotonic(), 0.0))
        if self._error is not None:
            raise self._error
        if not self._ended.is_set():
            raise StoppedError(STOPPED)

    def stop(self) -> None:
        """End soon; what is not committed is dropped. Callable from any thread."""
        self._stop.set()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 (`run` raises it)
            if self._error is None:
                self._error = error
            self._stop.set()

    def _reading(self) -> None:
        before = threading.Event()
        before.set()
        for unit in self._read():
            part = _Moving(unit, before, len(unit.task.batches))
            before = part.committed
            self._put(self._ready, part)
        self._put(self._ready, None)

    def _ranking(self) -> None:
        me = threading.get_ident()
        while (found := self._next()) is not None:
            part, place = found
            batches = part.unit.task.batches
            if place >= len(batches) - 1:
                self._wait(part.before)
            if batches:
                self._began[me] = started = time.monotonic()
                self._rank(batches[place], part.unit.task.answers)
                del self._began[me]
                self.seconds.append(time.monotonic() - started)
            with self._lock:
                self.ranked += len(batches[place].places) if batches else 0
                part.left -= 1
                done = part.left <= 0
            if done:
                self._put(self._ranked, part)
        with self._lock:
            self._rankers -= 1
            last = self._rankers == 0
        if last:
            self._put(self._ranked, None)

    def _next(self) -> tuple[_Moving[U], int] | None:
        """The next batch, by its part and its place in it; None after the last. A part without any counts as one."""
        with self._turn:
            while not self._exhausted:
                part = self._current
                if part is not None and part.next < max(len(part.unit.task.batches), 1):
                    part.next += 1
                    return part, part.next - 1
                self._current = self._get(self._ready)
                self._exhausted = self._current is None
            return None

    def _writing(self) -> None:
        while (part := self._get(self._ranked)) is not None:
            self._commit(part.unit)
            part.committed.set()
        self._ended.set()

    def _hangs(self) -> bool:
        now = time.monotonic()
        return any(now - began > self._longest for began in list(self._began.values()))

    def _put(self, into: queue.Queue[T], item: T) -> None:
        while not self._stop.is_set():
            try:
                return into.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
        raise StoppedError("stopped")

    def _get(self, of: queue.Queue[T]) -> T:
        while not self._stop.is_set():
            try:
                return of.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
        raise StoppedError("stopped")

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(_POLL_SECONDS):
            if self._stop.is_set():
                raise StoppedError("stopped")
