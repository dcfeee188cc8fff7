"""A server in a separate process, as an operator starts it, for benchmarks: its ports, CPU, memory and settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 120.0


def free_port() -> int:
    """An unused TCP port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time so far of a process and of those it has started, all threads."""
    return sum(_own_cpu_seconds(each) for each in (process, *process.children(recursive=True)))


def _own_cpu_seconds(process: psutil.Process) -> float:
    if sys.platform != "linux":
        times = process.cpu_times()
        return float(times.user + times.system)
    # The process's CPU clock, as clock_getcpuclockid(3) makes it: cpu_times() counts in hundredths of a second, which
    # are four per cent of a round of 600 calls.
    return time.clock_gettime((~process.pid << 3) | 2)


@dataclass
class Server:
    """A running `recommender serve`."""

    process: subprocess.Popen[bytes]
    log: Path
    """Its log, one line of JSON for each event."""
    port: int = 0
    metrics_port: int = 0
    command: Sequence[str] = field(default_factory=tuple)

    @property
    def target(self) -> str:
        """Where it listens, host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def metrics(self) -> str:
        """Where its metrics are."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def cpu_seconds(self) -> float:
        """CPU time of the process and its workers so far."""
        return cpu_seconds(psutil.Process(self.process.pid))

    def memory_bytes(self) -> int:
        """Resident memory of the process and its workers."""
        process = psutil.Process(self.process.pid)
        return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))

    def events(self) -> Iterator[dict[str, Any]]:
        """The log so far."""
        for line in self.log.read_text(encoding="utf-8").splitlines():
            if line.startswith("{"):
                yield json.loads(line)


@contextmanager
def serving(
    *options: str,
    settings: Mapping[str, str] | None = None,
    module: Sequence[str] = ("-m", "recommender", "serve"),
    cwd: Path | None = None,
) -> Iterator[Server]:
    """`recommender serve` with these settings, else its defaults, on free ports and with metrics, until the end.

    Settings of the shell do not reach it. Raises RuntimeError with what it wrote if it ends before it is ready.
    """
    metrics_port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RECOMMENDER_", "OTEL_"))}
    environment |= {
        "RECOMMENDER_PORT": "0",
        "RECOMMENDER_METRICS_PORT": str(metrics_port),
        "RECOMMENDER_LOG_FORMAT": "json",
        **(settings or {}),
    }
    command = [sys.executable, *module, *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=out, cwd=cwd)
        server = Server(process, log, 0, metrics_port, command)
        try:
            server.port = _ready(server)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(server: Server) -> int:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        seen = {event["event"]: event for event in server.events()}
        # One of several workers is ready before the others listen.
        if "worker" not in seen.get("ready", {"worker": None}) or "all workers serve" in seen:
            reserved = seen.get("port reserved")
            return int(reserved["port"] if reserved else seen["listening"]["address"].rsplit(":", 1)[1])
        if server.process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not get ready and wrote: {server.log.read_text(encoding='utf-8')}")
