"""GC tuning and waiting, which every server process shares."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from recommender.server.process import any_of, stopping_on_signals
from tests.support.fakes import turns

# In a separate process: the collector is global.
CYCLES = """
import gc
import weakref
from recommender.server.process import spare_collections


class Cycle:
    def __init__(self):
        self.itself = self


standing = [{row: [row]} for row in range(1000)]
spare_collections()
assert not any(each in standing for each in gc.get_objects()), "what stood there is looked through again and again"
freed = 0


def count(_):
    global freed
    freed += 1


watched = []
for _ in range(100_000):
    cycle = Cycle()
    watched.append(weakref.ref(cycle, count))
print(freed)
"""


def test_a_server_that_has_loaded_leaves_that_alone_and_still_frees_cycles() -> None:
    told = subprocess.run([sys.executable, "-c", CYCLES], check=True, capture_output=True, text=True)

    assert int(told.stdout) > 50_000


async def test_the_first_of_several_waits_ends_the_others_but_no_task() -> None:
    never, now = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def wait(name: str) -> None:
        try:
            await never.wait()
        finally:
            ended.append(name)

    task = asyncio.create_task(wait("task"))
    asyncio.get_running_loop().call_soon(now.set)
    await any_of(wait("coroutine"), now.wait(), task)
    await asyncio.sleep(0)  # the cancelled one takes its turn

    assert ended == ["coroutine"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Stopped:
    """A server that counts its stops."""

    def __init__(self) -> None:
        self.count = 0

    def stop(self) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("disposition", "told"), [(signal.SIG_DFL, 2), (signal.SIG_IGN, 0)], ids=["in a terminal", "under nohup"]
)
async def test_a_hang_up_drains_however_often_it_comes_unless_it_is_ignored(
    disposition: signal.Handlers, told: int
) -> None:
    server = Stopped()
    former = signal.signal(signal.SIGHUP, disposition)
    try:
        async with stopping_on_signals(server):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
                await turns()
    finally:
        signal.signal(signal.SIGHUP, former)

    assert server.count == told
