"""Fakes for tests of the batcher: a virtual clock, an engine that tests hold, and a tripwire for what blocks."""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from recommender.batching.batcher import Batcher
from recommender.batching.cost import Cost
from recommender.domain import Query, Ranking

with_time = pytest.mark.asyncio(loop_factories=["debug"])
"""Marks tests of durations: they run on virtual time only."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in debug mode on virtual time, which passes at once when nothing else is left to do."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_NoWaiting(self))
        self.set_debug(True)
        self.slow_callback_duration = 60.0

    def time(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        self._now += seconds

    def settle(self) -> None:
        """Run everything that can run without time passing."""
        while True:
            # One turn: what is ready now, and then what that made ready.
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:  # type: ignore[attr-defined]
                return

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, with all that happens meanwhile."""
        self.run_until_complete(asyncio.sleep(seconds))
        self.settle()


def on_virtual_time(test: Coroutine[object, object, None]) -> None:
    """Run a test of durations; `with_time` does where a conftest has the loops."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test)


class _NoWaiting(selectors.BaseSelector):
    """A selector that advances the loop's time instead of waiting for files."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everybody waits for somebody else")
            self._loop.pass_time(max(timeout, 0.0))
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def answer(query: Query) -> Ranking:
    """The fake engine's ranking for a query: no other query has the same."""
    first = query.history[0] if query.history else query.user
    return Ranking([sum(query.history), len(query.history), query.k], [float(first)])


@dataclass(eq=False)
class Run:
    """One run of the fake engine, until it is released."""

    queries: Sequence[Query]
    done: asyncio.Future[Sequence[Ranking]]
    told: Callable[[], None]
    ended: float | None = None

    @property
    def pending(self) -> bool:
        return not self.done.done()

    def release(self) -> None:
        """Answer every query."""
        self.done.set_result([answer(query) for query in self.queries])
        self._end()

    def return_too_few(self) -> None:
        self.done.set_result([answer(query) for query in self.queries[1:]])
        self._end()

    def fail(self, error: BaseException | None = None) -> None:
        self.done.set_exception(error or RuntimeError("the fake engine fails"))
        self._end()

    def _end(self) -> None:
        self.ended = self.done.get_loop().time()
        self.told()


@dataclass(eq=False)
class Staged:
    """A run that the fake engine begins as soon as it has a slot: in the turn in which another one ends."""

    run: Run
    began: float | None = None
    taken_back: bool = False

    @property
    def ended(self) -> float | None:
        return self.run.ended

    def take_back(self) -> bool:
        self.taken_back = self.began is None
        return self.taken_back

    async def result(self) -> Sequence[Ranking]:
        return await self.run.done


class FakeEngine:
    """Answers at once, or, if `held`, when its test releases the run."""

    def __init__(self, *, held: bool = False, poison: frozenset[int] = frozenset(), slots: int = 1) -> None:
        self.held = held
        self.poison = poison
        self.slots = slots
        self.runs: list[Run] = []
        self.staged: list[Staged] = []
        self.terminated = 0

    @property
    def waiting(self) -> list[Run]:
        return [run for run in self.runs if run.pending]

    @property
    def sizes(self) -> list[int]:
        return [len(run.queries) for run in self.runs]

    async def run(self, queries: Sequence[Query]) -> Sequence[Ranking]:
        """Rank for the queries; a history with a poisonous item fails its run."""
        run = self._make(queries)
        self._begin(run)
        return await run.done

    def stage(self, queries: Sequence[Query]) -> Staged:
        staged = Staged(self._make(queries))
        self.staged.append(staged)
        self._go_on()
        return staged

    def terminate(self) -> None:
        self.terminated += 1

    def _make(self, queries: Sequence[Query]) -> Run:
        return Run(tuple(queries), asyncio.get_running_loop().create_future(), self._go_on)

    def _begin(self, run: Run) -> None:
        self.runs.append(run)
        if not self.held:
            if any(self.poison.intersection(query.history) for query in run.queries):
                run.fail()
            else:
                run.release()

    def _go_on(self) -> None:
        while self.staged and len(self.waiting) < self.slots:
            staged = self.staged.pop(0)
            if not staged.taken_back:
                staged.began = staged.run.done.get_loop().time()
                self._begin(staged.run)


def make_batcher(engine: Any, **options: Any) -> Batcher:
    """Build a batcher with small limits on the running loop's clock."""
    defaults: dict[str, Any] = {
        "max_batch_size": 4,
        "max_backlog": 16,
        "engine_timeout": 30.0,
        "cost": Cost(0.010, 0.001),
        "clock": asyncio.get_running_loop().time,
    }
    return Batcher(engine, **(defaults | options))


def query(*history: int, k: int = 3) -> Query:
    return Query(history, k)


async def start(batcher: Batcher, *items: int, deadline: float = math.inf) -> list[asyncio.Task[Ranking]]:
    """Start a caller for each item; all have submitted when this returns."""
    callers = [asyncio.create_task(batcher.submit(query(item), deadline=deadline)) for item in items]
    await turns()
    return callers


async def outcomes(callers: list[asyncio.Task[Ranking]]) -> list[Ranking | BaseException]:
    return await asyncio.gather(*callers, return_exceptions=True)


async def turns(count: int = 20) -> None:
    """Let the loop do everything that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


_BLOCKING = frozenset({"open", "time.sleep", "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "os.listdir"})
_armed = False


def _tripwire(event: str, arguments: tuple[object, ...]) -> None:
    # An armed loop runs in this thread: what blocks now blocks every caller. Sources are read for debug tracebacks.
    if event == "open" and str(arguments[0]).endswith(".py"):
        return
    if _armed and event in _BLOCKING and asyncio._get_running_loop() is not None:
        raise AssertionError(f"{event}{arguments!r} blocks the event loop")


sys.addaudithook(_tripwire)  # can never be removed again: `tripwire` arms it


@contextmanager
def tripwire() -> Iterator[None]:
    """Make files, sleeps, processes and name look-ups in the event loop's thread raise meanwhile."""
    global _armed  # noqa: PLW0603 (an audit hook is global and cannot be removed)
    _armed = True
    try:
        yield
    finally:
        _armed = False
