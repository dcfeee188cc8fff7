"""A server under attack: an honest caller, and the resources of the server's processes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from recommender.client import Client
from recommender.errors import RecommenderError
from recommender.security.access import digest_of, new_token
from recommender.settings.network import Edge
from tests.attack.attacks import Attack, Target, held
from tests.support.process import Process, running

GRACE_MS = 1_000
_MEBIBYTE = 1 << 20
_PAUSE = 0.02
_CALL_TIMEOUT = 20.0
_SETTLING = 30.0
"""Seconds that a server has to let go of what an attacker left behind."""
_CALLS_AFTER = 3
_MORE_FILES = 8
"""File descriptors that a server may have more of after an attack."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one attack did: `faults` is empty where nothing was harmed."""

    attack: str
    seen: str
    seconds: float
    honest: int
    """Calls of the honest caller that were answered meanwhile."""
    slowest: float
    """Seconds that the slowest of them took; the attacker's own work on this event loop is in it."""
    grown: int
    """MiB that the server's processes grew by at most."""
    faults: tuple[str, ...]


@dataclass(slots=True)
class Victim:
    """A running server and an honest caller with a token; no attack may grow it by more than `most_mb`."""

    process: Process
    target: Target
    client: Client
    most_mb: int
    _honest: list[float] = field(default_factory=list)
    _harmed: list[str] = field(default_factory=list)
    _peak: int = 0

    async def suffer(self, name: str, attack: Attack) -> Report:
        """Run an attack while the honest caller keeps calling, and judge its effects."""
        self._honest, self._harmed = [], []
        before, files = self._resident(), self._files()
        begun = time.monotonic()
        faults: list[str] = []
        caller = asyncio.create_task(self._call_on())
        most = asyncio.create_task(self._most_resident())
        try:
            seen = await attack(self.target)
            await self._calls_after()
        finally:
            caller.cancel()
            most.cancel()
            await asyncio.wait({caller, most})
        grown = max(self._peak - before, 0) // _MEBIBYTE
        seconds = time.monotonic() - begun
        if self.process.process.returncode is not None:
            faults.append(f"the server ended with {self.process.process.returncode}")
        elif not await self._settled(files):
            faults.append(f"{self._files() - files} files more are open {_SETTLING:.0f} s later")
        if self._harmed:
            faults.append(f"{len(self._harmed)} honest calls failed, the first: {self._harmed[0]}")
        if not self._honest:
            faults.append("no honest call was answered")
        if grown > self.most_mb:
            faults.append(f"it grew by {grown} MiB, allowed are {self.most_mb}")
        return Report(name, seen, seconds, len(self._honest), max(self._honest, default=0.0), grown, tuple(faults))

    async def stop(self) -> Report:
        """Stop the server while an attacker holds all that it can. It has its grace and a little more."""
        holding = asyncio.create_task(held(self.target))
        begun = time.monotonic()
        faults: list[str] = []
        try:
            await asyncio.sleep(1.0)
            begun = time.monotonic()
            self.process.signal(signal.SIGTERM)
            async with asyncio.timeout(GRACE_MS / 1000 + 10):
                code = await self.process.process.wait()
            if code:
                faults.append(f"exit code {code}")
        except TimeoutError:
            faults.append("it had not ended 10 s after its grace")
        finally:
            holding.cancel()
            await asyncio.wait({holding})
        return Report("stop while held", "SIGTERM", time.monotonic() - begun, 0, 0.0, 0, tuple(faults))

    async def _call_on(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                await self.client.recommend([1, 2, 3], timeout=_CALL_TIMEOUT)
            except RecommenderError as error:
                self._harmed.append(str(error))
            except Exception as error:  # noqa: BLE001 (any error of an honest caller is a fault)
                self._harmed.append(repr(error))
            else:
                self._honest.append(time.monotonic() - begun)
            await asyncio.sleep(_PAUSE)

    async def _most_resident(self) -> None:
        self._peak = self._resident()
        while True:
            await asyncio.sleep(0.1)
            self._peak = max(self._peak, self._resident())

    async def _calls_after(self) -> None:
        """Wait until some honest calls that began after the attack have ended."""
        enough = len(self._honest) + len(self._harmed) + _CALLS_AFTER
        for _ in range(int(_CALLS_AFTER * _CALL_TIMEOUT / _PAUSE)):
            if len(self._honest) + len(self._harmed) >= enough:
                return
            await asyncio.sleep(_PAUSE)

    async def _settled(self, files: int) -> bool:
        """Whether the server lets go of what was left behind, in time."""
        for _ in range(int(_SETTLING / _PAUSE)):
            if self._files() <= files + _MORE_FILES:
                return True
            await asyncio.sleep(_PAUSE)
        return False

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def _resident(self) -> int:
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _files(self) -> int:
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += process.num_fds()
        return total


@asynccontextmanager
async def victim(edge: Edge, folder: Path, *, size: float, most_mb: int) -> AsyncIterator[Victim]:
    """A server of this edge that wants tokens, on free ports of this machine."""
    token, tokens = new_token(), folder / f"{edge}.toml"
    tokens.write_text(f'[honest]\nsha256 = ["{digest_of(token).hex()}"]\n', encoding="ascii")
    settings = {
        "RECOMMENDER_EDGE": edge,
        "RECOMMENDER_TOKENS_FILE": str(tokens),
        "RECOMMENDER_METRICS_PORT": "0",
        "RECOMMENDER_HEALTH_PORT": "0",
        "RECOMMENDER_DRAIN_GRACE_MS": str(GRACE_MS),
        "RECOMMENDER_HANDSHAKE_TIMEOUT_MS": "2000",
    }
    async with running(settings=settings) as process:
        reading = asyncio.create_task(process.read_on())
        try:
            told = {event["event"]: event for event in process.log}
            metrics = int(told["metrics"]["address"].rsplit(":", 1)[1].partition("/")[0])
            target = Target(process.port, metrics, int(told["probes"]["port"]), size)
            async with Client(f"127.0.0.1:{process.port}", token=token) as client:
                await client.recommend([1, 2, 3], timeout=_CALL_TIMEOUT)
                yield Victim(process, target, client, most_mb)
        finally:
            reading.cancel()
            await asyncio.wait({reading})
