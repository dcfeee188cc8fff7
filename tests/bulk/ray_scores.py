"""`recommender score --on ray`: killed and resumed on local clusters, and once more on one that already runs.

Writes the results as JSON. Runs in a separate environment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from socket import socket
from typing import Any

import pyarrow.parquet as pq

model, path, output = sys.argv[1:]
SECONDS = 500
PROGRAMS = Path(sys.executable).parent
# Otherwise each worker of Ray repeats this `uv run`, and so installs an environment again.
ENVIRONMENT = {
    **os.environ,
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Else Ray looks for a cluster of others on this machine.
    "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray"),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def words(into: str, on: str) -> list[str]:
    """The command; two actors have several shards of several parts each."""
    shape = ["--threads", "1", "--part-rows", "2000", "--json"]
    return [str(PROGRAMS / "recommender"), "score", model, "--input", path, "--output", into, "--on", on, *shape]


def score(into: str, on: str = "ray") -> dict[str, Any]:
    """Score to the end; the summary."""
    done = subprocess.run(
        words(into, on), check=False, capture_output=True, text=True, timeout=SECONDS, env=ENVIRONMENT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def kill(into: str) -> None:
    """Score until a part is committed, and kill the command."""
    with subprocess.Popen(
        words(into, "ray"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as process:
        end = time.monotonic() + SECONDS
        while not any(Path(into).glob("shard-*/part-*.parquet")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.002)  # the folder gives no sign
        process.kill()


def free_port() -> int:
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def score_on_a_running_cluster(into: str) -> dict[str, Any]:
    """Score on a cluster of two CPUs by its address for clients."""
    port = free_port()
    ports = ["--port", "0", "--ray-client-server-port", str(port)]
    start = [str(PROGRAMS / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--include-dashboard", "false"]
    with subprocess.Popen([*start, *ports], stdout=subprocess.DEVNULL, env=ENVIRONMENT) as cluster:
        try:
            end = time.monotonic() + SECONDS
            while not _listens(port):
                assert cluster.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            return score(into, f"ray://127.0.0.1:{port}")
        finally:
            cluster.terminate()
            cluster.wait(SECONDS)


def _listens(port: int) -> bool:
    with socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


kill(output)
summary, again = score(output), score(output)
client = score_on_a_running_cluster(f"{output}-client")
rows, same = (pq.ParquetDataset(folder).read() for folder in (output, f"{output}-client"))
shutil.rmtree(ENVIRONMENT["RAY_TMPDIR"], ignore_errors=True)
found = {"summary": summary, "again": again, "client": client, "same": rows.equals(same), "rows": rows.to_pylist()}
json.dump(found, sys.stdout)
