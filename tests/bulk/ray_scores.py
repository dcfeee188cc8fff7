"""`recommender score --on ray` on a local cluster of two actors, twice; writes what came of it as JSON.

Runs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

model, path, output = sys.argv[1:]


def score(into: str, *more: str) -> dict[str, object]:
    words = ["score", model, "--input", path, "--output", into, "--json", *more]
    command = [str(Path(sys.executable).with_name("recommender")), *words]
    # Else each worker of Ray's repeats the `uv run` that this runs in, and so installs an environment anew.
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    again = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, env=environment)
    assert "is not empty, and" in again.stderr, again.stderr
    summary: dict[str, object] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return summary


summary = score(output, "--on", "ray", "--threads", "1", "--user", "user", "--checkpoint", f"{output}-checkpoints")
rows = pq.ParquetDataset(output).read().to_pylist()
json.dump({"summary": summary, "rows": {row["user"]: row for row in rows}}, sys.stdout)
