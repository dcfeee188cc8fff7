"""Run the batcher's tests on debug asyncio with a virtual clock and on uvloop, with a tripwire for blocking calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.support.fakes import VirtualLoop, tripwire


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"debug": VirtualLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with tripwire():
        yield


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """A virtual loop for tests that drive it by hand."""
    made = VirtualLoop()
    yield made
    made.close()
