"""Load a server with h2load (Debian: nghttp2-client): gRPC over HTTP/2 or JSON over HTTP/1.1, one history a run."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.hosted import Hosted

CONNECTIONS = 4
PERIOD_MS = 2
LEAST_PERIOD = 0.01
"""Seconds between two looks of h2load at a connection's rate."""
ENOUGH = 0.97
"""Share of the bytes of as many answers as calls, below which some calls were answered with an error instead."""


@dataclass(frozen=True)
class Seen:
    """Result of one run."""

    rate: float
    """Calls answered a second."""
    failed: int
    latencies: tuple[float, ...]
    """Of the calls, in milliseconds, in order of size."""
    cpu: float
    """Seconds of the server's CPU a call."""

    def quantile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)]


def ask(server: Hosted, history: Sequence[int], calls: int, in_flight: int, rate: float | None = None) -> Seen:
    """Send `calls` calls with at most `in_flight` at once, as fast as replies arrive or at a rate.

    In the first case HTTP/1.1 has a connection for each call in flight, gRPC four. With a rate, all servers get as many
    connections, with one call at a time on each, that start one after the other. h2load checks the rate of a connection
    every 10 ms at most, so fewer connections would send their calls in bursts. Raises RuntimeError if h2load fails.
    """
    _, size = server.wire.ask(server.port, history)
    if rate is not None:
        connections = max(in_flight, math.ceil(rate * LEAST_PERIOD))
        each = 1
    else:
        connections = in_flight if server.wire.http1 else min(CONNECTIONS, in_flight)
        each = in_flight // connections
    words = ["--h1"] if server.wire.http1 else ["-H", "te: trailers"]
    words += ["-m", str(each), "-H", f"content-type: {server.wire.content_type}"]
    if rate is not None:
        spread = max(PERIOD_MS, round(1000 / rate))
        words += ["--rps", f"{rate / connections:g}"]
        words += ["-r", str(max(1, round(rate * spread / 1000))), "--rate-period", f"{spread}ms"]
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(server.wire.body(history))
        before = server.cpu_seconds()
        out = subprocess.run(
            ["h2load", "-n", str(calls), "-c", str(connections), "-t", "1", "-d", str(body), *words,
             "--log-file", str(log), f"http://127.0.0.1:{server.port}{server.wire.path}"],
            check=True, capture_output=True, text=True, timeout=120,
        ).stdout  # fmt: skip
        cpu = server.cpu_seconds() - before
        lines = [line.split("\t") for line in log.read_text("ascii").splitlines()]
    counted = re.search(r"([\d.]+) req/s[\s\S]* (\d+) succeeded[\s\S]*\((\d+)\) data", out)
    if counted is None:
        raise RuntimeError(out)
    succeeded = int(counted[2])
    if not server.wire.http1:
        # An error of gRPC is 200 to HTTP, and has no body.
        answered = int(counted[3]) / size
        succeeded = calls if answered > ENOUGH * calls and succeeded == calls else min(succeeded, int(answered))
    latencies = tuple(sorted(int(line[2]) / 1e3 for line in lines if line[1] == "200"))
    return Seen(float(counted[1]) * succeeded / calls, calls - succeeded, latencies, cpu / calls)
