"""A server in a separate process, as an operator runs it, and its log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

PATIENCE = 60.0


@dataclass(slots=True)
class Process:
    """A running `recommender serve`; `log` is what it wrote so far, an event each."""

    process: asyncio.subprocess.Process
    log: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""

    @property
    def port(self) -> int:
        (listening,) = (event for event in self.log if event["event"] == "listening")
        return int(listening["address"].rsplit(":", 1)[1])

    async def until(self, name: str) -> dict[str, Any]:
        """Read the log up to the next event of that name."""
        while event := await self._read():
            if event["event"] == name:
                return event
        raise AssertionError(f"the server ended before {name!r} and wrote: {self.text}")

    async def read_on(self) -> None:
        """Read the log as it is written: a full pipe would block the server."""
        ended = False
        while not ended:
            with suppress(TimeoutError):
                ended = await self._read() is None

    async def exit_code(self) -> int:
        """Read the rest of the log and wait for the end."""
        while await self._read():
            pass
        return await asyncio.wait_for(self.process.wait(), PATIENCE)

    def resident_bytes(self) -> int:
        """The memory of the process and its children, by Linux."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            for pid in (self.process.pid, *self.children())
        )
        return pages * os.sysconf("SC_PAGE_SIZE")

    def children(self) -> list[int]:
        """The processes that it has started, by Linux."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def _read(self) -> dict[str, Any] | None:
        assert self.process.stderr is not None
        while line := (await asyncio.wait_for(self.process.stderr.readline(), PATIENCE)).decode():
            self.text += line
            if line.startswith("{"):
                event: dict[str, Any] = json.loads(line)
                self.log.append(event)
                return event
        return None


@asynccontextmanager
async def running(
    *options: str,
    settings: Mapping[str, str] | None = None,
    wait_for: str | None = "ready",
    module: str = "recommender",
) -> AsyncIterator[Process]:
    """`recommender serve` on a free port; killed at the end if it still runs."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RECOMMENDER_", "OTEL_"))}
    environment |= {"RECOMMENDER_PORT": "0", "RECOMMENDER_WEIGHTS_DIR": str(ROOT / "weights"), **(settings or {})}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "serve", *options,
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    served = Process(process)
    try:
        if wait_for is not None:
            await served.until(wait_for)
        yield served
    finally:
        if process.returncode is None:
            process.kill()
            # To the end of its log: asyncio learns of the end of a process only when its pipes are read.
            await served.exit_code()
