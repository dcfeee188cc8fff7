"""State machines: random callers against the pure backlog, and against the whole batcher."""

from __future__ import annotations

import asyncio
import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recommender.batching.backlog import Backlog
from recommender.batching.batcher import Batcher
from recommender.batching.batches import Batch, Waiter
from recommender.batching.cost import Cost, Estimator
from recommender.domain import Query, Ranking
from recommender.errors import BacklogFullError, DeadlineError, RecommenderError
from tests.support.fakes import FakeEngine, VirtualLoop, answer, make_batcher, query

ITEMS = st.integers(0, 5)
SECONDS = st.floats(0.001, 3.0)
TIMEOUTS = st.one_of(st.just(math.inf), SECONDS)
MOST = 6
ROWS = 3


class BacklogMachine(RuleBasedStateMachine):
    """An admitted caller leaves in exactly one way: it cancels, is late, or is in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.backlog: Backlog[int] = Backlog(ROWS, MOST, Estimator(Cost(0.01, 0.001)), slots=2)
        self.waiting: list[Waiter[int]] = []
        self.running: list[Batch[int]] = []
        self.count = 0

    @rule(item=ITEMS, timeout=TIMEOUTS)
    def come(self, item: int, timeout: float) -> None:
        idle = not self.waiting and len(self.running) < 2
        try:
            waiter = self.backlog.admit(Query((item,), 3), self.now + timeout, self.count, self.now)
        except BacklogFullError:
            assert len(self.waiting) == MOST
            assert 0 < self.backlog.retry_after(self.now) <= 60
        except DeadlineError:
            assert not idle, "an idle engine with nobody waiting takes everyone"
        else:
            self.waiting.append(waiter)
            self.count += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        assert self.backlog.leave(waiter)
        assert not self.backlog.leave(waiter)
        self.waiting.remove(waiter)

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        late = self.backlog.expire(self.now)
        expected = [waiter for waiter in self.waiting if waiter.deadline <= self.now]
        assert [waiter for waiter in late if waiter in self.waiting] == expected
        self.waiting = [waiter for waiter in self.waiting if waiter.deadline > self.now]
        assert self.backlog.expire(self.now) == [], "nobody is late twice"
        assert self.backlog.next_deadline > self.now

    @rule()
    def start(self) -> None:
        batch = self.backlog.next_batch(self.now)
        if not self.waiting or len(self.running) == 2:
            assert batch is None
            return
        assert batch is not None
        oldest, self.waiting = self.waiting[:ROWS], self.waiting[ROWS:]
        assert batch.waiters == oldest
        assert all(waiter.deadline > self.now for waiter in batch.waiters)
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), learn=st.booleans())
    def finish(self, data: st.DataObject, learn: bool) -> None:  # noqa: FBT001 (drawn by name)
        batch = data.draw(st.sampled_from(self.running))
        self.backlog.finish(batch, self.now, learn=learn)
        self.running.remove(batch)

    @invariant()
    def bounded(self) -> None:
        assert len(self.backlog) == len(self.waiting) <= MOST
        assert self.backlog.running == len(self.running) <= 2


class BatcherMachine(RuleBasedStateMachine):
    """Every request that was submitted ends exactly once, and the statistics add up."""

    max_wait = 0.0
    most = MOST
    slots = 2

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.engine = FakeEngine(held=True, slots=self.slots)
        self.submitted = 0
        self.callers: list[tuple[asyncio.Task[list[Ranking | RecommenderError]], list[Query]]] = []
        self.batcher = self.loop.run_until_complete(self._make())

    async def _make(self) -> Batcher:
        return make_batcher(
            self.engine,
            max_batch_size=ROWS,
            max_backlog=self.most,
            slots=self.slots,
            engine_timeout=60.0,
            max_wait=self.max_wait,
        )

    async def _one(self, asked: Query, deadline: float) -> list[Ranking | RecommenderError]:
        try:
            return [await self.batcher.submit(asked, deadline=deadline)]
        except RecommenderError as error:
            return [error]

    @rule(item=ITEMS, timeout=TIMEOUTS)
    def submit(self, item: int, timeout: float) -> None:
        asked = query(item)
        self.callers.append((self.loop.create_task(self._one(asked, self.loop.time() + timeout)), [asked]))
        self.submitted += 1
        self.loop.settle()

    @rule(items=st.lists(ITEMS, max_size=9), timeout=TIMEOUTS)
    def submit_many(self, items: list[int], timeout: float) -> None:
        asked = [query(item) for item in items]
        many = self.batcher.submit_many(asked, deadline=self.loop.time() + timeout)
        self.callers.append((self.loop.create_task(many), asked))
        self.submitted += len(items)
        self.loop.settle()

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        caller, _ = data.draw(st.sampled_from(self.callers))
        caller.cancel()
        self.loop.settle()

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @precondition(lambda self: self.engine.waiting)
    @rule(data=st.data(), how=st.sampled_from(["release", "fail", "return_too_few"]))
    def end_a_run(self, data: st.DataObject, how: str) -> None:
        getattr(data.draw(st.sampled_from(self.engine.waiting)), how)()
        self.loop.settle()

    @precondition(lambda self: self.engine.waiting)
    @rule(runs=st.integers(2, 9))
    def end_runs_while_the_loop_is_busy(self, runs: int) -> None:
        for _ in range(runs):
            if self.engine.waiting:
                self.engine.waiting[0].release()
        self.loop.settle()

    @precondition(lambda self: self.engine.waiting)
    @rule()
    def hang(self) -> None:
        self.loop.advance(61.0)

    @rule()
    def close(self) -> None:
        self.loop.run_until_complete(self.batcher.close())
        self.loop.settle()

    @invariant()
    def every_request_is_in_one_count(self) -> None:
        seen = self.batcher.statistics()
        assert seen.waiting <= self.most
        not_let_in = sum(len(asked) for caller, asked in self.callers if not caller.done())
        assert 0 <= self.submitted - seen.ended <= not_let_in
        for caller, asked in self.callers:
            if caller.done() and not caller.cancelled():
                outcomes = caller.result()
                assert len(outcomes) == len(asked)
                for each, outcome in zip(asked, outcomes, strict=True):
                    assert isinstance(outcome, RecommenderError) or outcome == answer(each)

    def teardown(self) -> None:
        while self.engine.waiting:
            self.engine.waiting[0].release()
            self.loop.settle()
        assert all(caller.done() for caller, _ in self.callers), "somebody waits for ever"
        seen = self.batcher.statistics()
        assert (seen.waiting, seen.running, seen.ended) == (0, 0, self.submitted)
        self.loop.run_until_complete(self.batcher.drain())
        self.loop.run_until_complete(self.batcher.close())
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


class GatheringMachine(BatcherMachine):
    """The same where batches gather callers first."""

    max_wait = 0.05


class BusyMachine(BatcherMachine):
    """The same where so many wait for one slot that several batches are staged."""

    most = 30
    slots = 1

    @rule(items=st.lists(ITEMS, min_size=ROWS, max_size=6 * ROWS))
    def submit_several(self, items: list[int]) -> None:
        for item in items:
            asked = query(item)
            self.callers.append((self.loop.create_task(self._one(asked, math.inf)), [asked]))
        self.submitted += len(items)
        self.loop.settle()


TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestGathering = GatheringMachine.TestCase
TestGathering.settings = TestBatcher.settings
TestBusy = BusyMachine.TestCase
TestBusy.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
