"""Memory of a bulk job besides its model, and its growth with the rows of the input.

One file of histories is linked as often as necessary, so the input takes little room; the output takes some 45 bytes a
row. Memory is sampled twice a second. The second tenth of the time is compared with the last. `just bench bulk_memory`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.facts import machine
from bench.questions import many
from bench.questions.bulk import input_of

FILE_ROWS = 1_000_000
LOOK_SECONDS = 0.5
MODEL_BYTES = 400e6
"""Memory of the process with the model loaded and nothing scored: imports, ONNX Runtime, two sessions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--most-bytes", type=float, default=1e9, help="beside the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        input_of(folder / "rows.parquet", min(FILE_ROWS, options.rows), 10_000)
        for number in range(max(options.rows // FILE_ROWS, 1)):
            (folder / "in" / f"{number:05}.parquet").symlink_to(folder / "rows.parquet")
        words = ["score", str(many.MODEL), "--input", str(folder / "in"), "--output", str(folder / "out"), "--json"]
        command = [sys.executable, "-m", "recommender", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            seen = watched(psutil.Process(process.pid))
            summary = json.loads(process.stdout.read() if process.stdout else "")
    tenth = max(len(seen) // 10, 1)
    begin, end = statistics.median(seen[tenth : 2 * tenth]), statistics.median(seen[-tenth:])
    for fact, value in machine().items():
        print(f"{fact}: {value}")
    print(f"rows: {summary['rows']:,}, {summary['rows_per_second']:,} a second")
    print(
        f"resident: most {max(seen) / 1e6:,.0f} MB, at the begin {begin / 1e6:,.0f} MB, at the end {end / 1e6:,.0f} MB"
    )
    tenths = [statistics.median(seen[start : start + tenth]) for start in range(0, tenth * 10, tenth)]
    told = ", ".join(f"{each / 1e6:,.0f}" for each in tenths)
    print(f"median of each tenth of {len(seen) * LOOK_SECONDS:,.0f} s, MB: {told}")
    assert max(seen) - MODEL_BYTES <= options.most_bytes
    assert end <= 1.2 * begin


def watched(process: psutil.Process) -> list[int]:
    """The resident bytes of a process, twice a second until it ends."""
    seen: list[int] = []
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        seen.append(process.memory_info().rss)
        time.sleep(LOOK_SECONDS)
    return seen


if __name__ == "__main__":
    main()
