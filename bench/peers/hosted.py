"""A server of a comparison in its own processes: what it is started with, its CPU and memory, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from bench.peers.wires import Wire
from bench.serving import cpu_seconds

ROOT = Path(__file__).resolve().parents[2]
HISTORY = tuple(range(100, 2100, 100))
PATIENCE = 90.0
FIXED = {"PYTHONPATH": str(ROOT), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""Under `uv run` Ray would start its workers in uv's environment, which has no Ray."""


class Unavailable(Exception):  # noqa: N818 (what is shown is the reason)
    """A server that cannot be compared, and why."""


@dataclass(frozen=True)
class Hosted:
    """A server that answers."""

    port: int
    wire: Wire
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """CPU time so far of the process and all it started."""
        return cpu_seconds(self.process)

    def memory_bytes(self) -> int:
        """Memory of all its processes; pages that several share count once."""
        total = 0
        for each in (self.process, *self.process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += int(each.memory_full_info().pss)
        return total


@contextmanager
def hosted(command: Sequence[str], environment: Mapping[str, str], port: int, wire: Wire) -> Iterator[Hosted]:
    """Start a server that listens on `port`, wait for an answer, and end it with all that it started.

    Settings of the shell do not reach it. Raises Unavailable with what it wrote last if it ends or keeps silent.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RECOMMENDER_", "OTEL_"))}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env={**inherited, **environment, **FIXED}, stdout=out, stderr=out, cwd=folder
            )
        tree = psutil.Process(process.pid)
        try:
            _answer(process, log, port, wire)
            yield Hosted(port, wire, tree)
        finally:
            _end(process, tree)


def _answer(process: subprocess.Popen[bytes], log: Path, port: int, wire: Wire) -> None:
    last: object = None
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            wire.ask(port, HISTORY)
        except (grpc.RpcError, OSError, ValueError, KeyError) as error:
            last = error
        else:
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended with {process.returncode}" if process.returncode is not None else f"no answer in {PATIENCE:g} s"
    asked = f"{last.code().name}: {last.details()}" if isinstance(last, grpc.Call) else repr(last)
    raise Unavailable(f"{ended}; asked, it says {asked}; it wrote last: {' / '.join(said[-3:])}")


def _end(process: subprocess.Popen[bytes], tree: psutil.Process) -> None:
    try:
        started = tree.children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for each in (tree, *started):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
