"""Work that would hold the event loop: an engine's threads, daemon threads for calls that may hang, and turns."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Generic, ParamSpec, TypeVar

from recommender.errors import EngineError

_JOIN_SECONDS = 2.0
_HANDOVER_SECONDS = 0.001
_BACKGROUND = "background"
"""Name of the threads of `in_background`."""
_TURN_SECONDS = 0.00025
_FIRST_TURN_SECONDS = 0.0005
"""Most batch calls of a batch's rows need no second turn then, each of which costs rounds of the loop."""
_TOGETHER = 8
"""Steps between two looks at the clock, if the last ones took less than `_QUICK_SECONDS` each."""
_QUICK_SECONDS = _TURN_SECONDS / 32
_MOST_ROUNDS = 20
_PAUSE_SECONDS = 0.002
_SWITCH_SECONDS = 0.0002
"""How long a thread may keep the GIL from another while a computation takes turns.

Threads of Envoy and of the engine need the GIL for each part of a short call. They wait this long for a loop that takes
it back at once: with CPython's 5 ms, short calls beside long computations take 10 ms more. At all other times 0.2 ms
would cost a tenth of the CPU behind Envoy.
"""
_IDLE_ROUND_SECONDS = 0.0001
"""A round of the event loop that takes longer has had something to do."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Job(Generic[R]):
    """A call that one of a few threads does for an event loop, at most once.

    `function` gets a callback, to be called as soon as it releases the GIL for a while.
    """

    def __init__(self, function: Callable[[Callable[[], None]], R], begun: Callable[[], None] = lambda: None) -> None:
        self.began: float | None = None
        """When a thread began it, as `time.monotonic` gives it; None before."""
        self.ended: float | None = None
        """When the thread ended it; the event loop learns of it later."""
        self._function = function
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[R] = self._loop.create_future()
        self._ticket = [None]

    async def result(self) -> R:
        """The result of the function; raises what it raised."""
        return await self._future

    def take_back(self) -> bool:
        """See to it that no thread begins it; False if one has, or if it was taken back already."""
        try:
            self._ticket.pop()  # one of the two threads gets it, in any order
        except IndexError:
            return False
        return True

    def work(self) -> None:
        """Run it, on a thread, unless it was taken back or its caller has gone."""
        if self._future.cancelled():
            return
        self.began = time.monotonic()  # first, so that a thread that is too late to take it back can read it
        if not self.take_back():
            self.began = None
            return
        result: R | None = None
        error: Exception | None = None
        try:
            result = self._function(self._begun)
        except Exception as raised:  # noqa: BLE001 (the caller gets the error, of any kind)
            error = raised
        except BaseException as raised:  # noqa: BLE001 (what ends a thread must not end the event loop)
            error = EngineError(f"the engine's thread was asked to end: {raised!r}")
        self.ended = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: R | None, error: Exception | None) -> None:
        if self._future.done():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)  # type: ignore[arg-type]


class Threads:
    """A few daemon threads that run jobs for an event loop: a stuck one does not keep the process from exiting."""

    def __init__(self, count: int, name: str = "engine") -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, function: Callable[[Callable[[], None]], R]) -> Job[R]:
        """Queue a function for the next free thread."""
        job = Job(function)
        self._jobs.put(job.work)
        return job

    async def call(self, function: Callable[[Callable[[], None]], R], *, at_once: bool = False) -> R:
        """Run `function` on a thread and return its result.

        A busy event loop holds the GIL, and the function waits for it. With `at_once` the loop blocks, so that the
        thread gets the GIL, until the function releases it or `_HANDOVER_SECONDS` are over.
        """
        if not at_once:
            return await self.put(function).result()
        begun = threading.Event()
        job = Job(function, begun.set)
        self._jobs.put(job.work)
        begun.wait(_HANDOVER_SECONDS)
        return await job.result()

    def close(self) -> bool:
        """End the threads; False if one is stuck in a job."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            work()


async def in_background(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a blocking call on a separate daemon thread; return its result, or raise its error.

    Cancelled, it leaves the thread behind: a call that hangs in native code or in a socket cannot be ended, and must
    not delay the exit of the process. `asyncio.to_thread` would have its thread joined at the end.
    """
    return await begin(function, *args, **kwargs)


def begin(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
    """Begin a blocking call on a separate daemon thread; the future is done when the call has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            result, error = function(*args, **kwargs), None
        except BaseException as raised:  # noqa: BLE001 (the caller gets the error, of any kind)
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=_BACKGROUND, daemon=True).start()
    return future


def background_works() -> bool:
    """Whether a call of `in_background` is still under way in this process.

    Native code in such a thread can crash a process that ends in the orderly way; `os._exit` ends it safely.
    """
    return any(thread.name == _BACKGROUND for thread in threading.enumerate())


class Turns:
    """Shares the event loop with long computations: one of them computes at a time, for a quarter millisecond a turn.

    A computation's first turn takes twice as long. After a turn the loop serves everything else until it is idle: a
    short call takes some ten rounds of the loop, and would wait for a turn in each. While short calls are open the next
    turn waits for their end, `_PAUSE_SECONDS` at most: they have the loop, a CPU and the GIL to themselves. Each
    computation waits for its next turn behind those that arrived before. While one needs several turns, the process's
    threads take the GIL from each other sooner, so a process has one Turns. `clock` gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = asyncio.Lock()
        self._open = 0
        self._long = 0
        self._usual_switch = 0.0
        self._paused: asyncio.Future[None] | None = None

    def begin_short(self) -> None:
        """Note that a short call is open; `end_short` must follow."""
        self._open += 1

    def end_short(self) -> None:
        """Note that a short call has ended."""
        self._open -= 1
        if self._paused is not None and not self._open:
            self._go_on(self._paused)

    async def once(self, work: Callable[[], R]) -> R:
        """Do indivisible work in one turn; return its result, or raise its error."""
        async with self._turn:
            done = work()
            await self._give_way()
        return done

    async def each(self, items: Iterable[T], work: Callable[[T], object]) -> None:
        """Do the work for each item, in order. Raises what it raises."""
        await self.through(map(work, items))

    async def through(self, steps: Iterator[object]) -> None:
        """Take all steps of an iterator, which works as it is read. Raises what it raises.

        Quick steps are taken several at a time: a look at the clock takes as long as some of them.
        """
        several, together, budget = False, 1, _FIRST_TURN_SECONDS
        try:
            while True:
                async with self._turn:
                    now = self._clock()
                    end = now + budget
                    while now < end:
                        if len(list(islice(steps, together))) < together:
                            return
                        before, now = now, self._clock()
                        together = _TOGETHER if now - before < together * _QUICK_SECONDS else 1
                    if not several:
                        several, budget = True, _TURN_SECONDS
                        self._begin_long()
                    await self._give_way()
        finally:
            if several:
                self._end_long()

    def _begin_long(self) -> None:
        self._long += 1
        if self._long == 1:
            self._usual_switch = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_SECONDS)

    def _end_long(self) -> None:
        self._long -= 1
        if not self._long:
            sys.setswitchinterval(self._usual_switch)

    async def _give_way(self) -> None:
        """Let the loop go round until it has nothing else to do, `_MOST_ROUNDS` times at most."""
        for _ in range(_MOST_ROUNDS):
            began = self._clock()
            await asyncio.sleep(0)
            if self._clock() - began < _IDLE_ROUND_SECONDS:
                break
        if self._open:
            await self._pause()

    async def _pause(self) -> None:
        """Wait until no short call is open, for `_PAUSE_SECONDS` at most."""
        loop = asyncio.get_running_loop()
        self._paused = loop.create_future()
        timer = loop.call_later(_PAUSE_SECONDS, self._go_on, self._paused)
        try:
            await self._paused
        finally:
            timer.cancel()
            self._paused = None

    @staticmethod
    def _go_on(paused: asyncio.Future[None]) -> None:
        if not paused.done():
            paused.set_result(None)
