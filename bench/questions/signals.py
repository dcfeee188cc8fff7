"""Which signal shows the remaining capacity of a replica: CPU, busy share, queue time or loop lag.

h2load (Debian: nghttp2-client) finds the most calls/s, then sends shares of it at a constant rate. The candidates for
an autoscaler are read from the server's own metrics. A signal is good if it is low while there is room and high when
there is none. `just bench signals --model PATH`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.serving import free_port
from recommender.engine.machine import available_cpus
from recommender.recommend_api.v1 import recommend_api_pb2 as api

METHOD = "/recommend_api.v1.RecommenderService/Recommend"
HISTORY = tuple(range(100, 2100, 100))
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1)
CONNECTIONS = 8


@contextmanager
def serving(model: Path) -> Iterator[tuple[int, int]]:
    """`recommender serve`, until it is no longer needed: its port and that of its metrics."""
    port, metrics = free_port(), free_port()
    environment = {**os.environ, "RECOMMENDER_METRICS_PORT": str(metrics), "RECOMMENDER_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "recommender", "serve", "--port", str(port), "--model", str(model)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            while "recommender_engine_slots{" not in scraped(metrics):
                if server.poll() is not None:
                    raise RuntimeError("the server ended")
                time.sleep(0.1)
            yield port, metrics
        finally:
            server.terminate()


def scraped(port: int) -> str:
    """The present metrics; empty if no server listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            text: str = reply.read().decode()
            return text
    except OSError:
        return ""


def value(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(found) for found in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def load(port: int, body: Path, seconds: int, rate: float | None) -> float:
    """Ask for so long, as fast as it goes or at a constant rate; calls/s that were answered."""
    pace = [] if rate is None else ["--rps", str(max(1, round(rate / CONNECTIONS)))]
    out = subprocess.run(
        ["h2load", "-D", str(seconds), "-c", str(CONNECTIONS), "-m", "32", "-t", "1", *pace, "-d", str(body),
         "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{METHOD}"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = re.search(r"([\d.]+) req/s", out)
    if found is None:
        raise RuntimeError(out)
    return float(found[1])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/10_model.onnx"))
    parser.add_argument("--seconds", type=int, default=6)
    options = parser.parse_args()
    message = api.RecommendRequest(item_ids=HISTORY).SerializeToString()
    with serving(options.model) as (port, metrics), tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + len(message).to_bytes(4, "big") + message)
        body.flush()
        most = load(port, Path(body.name), options.seconds, None)
        print(f"{options.model}: {most:,.0f} calls/s at most, {available_cpus()} CPUs shared with the generator\n")
        print("| load | calls/s | rows per run | CPU | engine busy | mean queue time, ms | mean loop lag, ms |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for share in SHARES:
            before, began = scraped(metrics), time.monotonic()
            rate = load(port, Path(body.name), options.seconds, share * most)
            after, took = scraped(metrics), time.monotonic() - began
            grown = {
                name: value(after, name) - value(before, name)
                for name in (
                    "process_cpu_time_seconds_total", "recommender_inference_time_seconds_sum",
                    "recommender_queue_time_seconds_sum", "recommender_queue_time_seconds_count",
                    "recommender_event_loop_lag_seconds_sum", "recommender_event_loop_lag_seconds_count",
                    "recommender_batch_size_sum", "recommender_batch_size_count",
                )
            }  # fmt: skip
            rows = grown["recommender_batch_size_sum"] / grown["recommender_batch_size_count"]
            queue = grown["recommender_queue_time_seconds_sum"] / grown["recommender_queue_time_seconds_count"]
            lag = grown["recommender_event_loop_lag_seconds_sum"] / grown["recommender_event_loop_lag_seconds_count"]
            cpu = grown["process_cpu_time_seconds_total"] / took / available_cpus()
            busy = grown["recommender_inference_time_seconds_sum"] / took
            print(
                f"| {share:.0%} | {rate:,.0f} | {rows:.1f} | {cpu:.0%} | {busy:.0%} | {queue * 1e3:.2f} |"
                f" {lag * 1e3:.2f} |"
            )


if __name__ == "__main__":
    main()
