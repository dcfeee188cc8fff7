"""k6 as the generator of a plan, with the script next to this module.

k6 writes a line for each request. Its number gives the time at which it was due, so the open loop is timed from the
intended send here too. Requests that k6 drops for lack of a virtual user count as never answered. The first request of
each virtual user includes its connecting.
"""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.facts import ROOT
from bench.load.generator import arrivals
from bench.load.plan import GOOD, LOST, Outcomes, Plan

SCRIPT = Path(__file__).with_name("k6.js")
PROTOSET = ROOT / "recommender/recommend_api/v1/recommend_api.binpb"


def run(plan: Plan, folder: Path, progress: Callable[[dict[str, float]], None]) -> Outcomes:
    """Run k6; raises ValueError for what its script does not do, RuntimeError with k6's words if it fails."""
    if plan.method == "stream" or plan.leaving or plan.hurried or plan.slow:
        raise ValueError("--generator k6 sends unary and batch calls; take --generator own for the rest")
    if len({phase.in_flight for phase in plan.phases}) > 1:
        raise ValueError("--generator k6 keeps one number in flight; give --in-flight one number")
    if shutil.which("k6") is None:
        raise ValueError("k6 is not installed: `just setup` brings it")
    plan.write(folder / "plan.json")
    (folder / "bodies.json").write_text(json.dumps(_bodies(plan)), encoding="utf-8")
    csv_file = folder / "k6.csv"
    environment = {
        **os.environ,
        "BENCH_PLAN": str(folder / "plan.json"),
        "BENCH_BODIES": str(folder / "bodies.json"),
        "BENCH_PROTOSET": str(PROTOSET),
        "K6_CSV_TIME_FORMAT": "unix_nano",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["k6", "run", "--quiet", "--no-summary", "--no-usage-report", "--address", "", "--out", f"csv={csv_file}"]
    with subprocess.Popen(
        [*command, str(SCRIPT)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        begun = time.monotonic()
        while process.poll() is None:
            progress({"seconds": time.monotonic() - begun})
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        said = process.stdout.read() if process.stdout else ""
    if process.returncode or not csv_file.exists():
        raise RuntimeError(f"k6 failed with {process.returncode}: {said}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return _outcomes(plan, csv_file, cpu, said)


def _bodies(plan: Plan) -> list[dict[str, object]]:
    requests: list[dict[str, object]] = [{"item_ids": history} for history in plan.histories()]
    if plan.method == "unary":
        return requests
    whole = requests * math.ceil(plan.rows / len(requests))
    starts = range(0, len(whole) - plan.rows + 1, plan.rows)
    return [{"requests": whole[at : at + plan.rows]} for at in starts]


def _outcomes(plan: Plan, csv_file: Path, cpu: float, said: str) -> Outcomes:
    numbers, ended, took, status = [], [], [], []
    with csv_file.open(encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            if line["metric_name"] == "grpc_req_duration":
                tags = dict(tag.split("=", 1) for tag in line["extra_tags"].split("&"))
                numbers.append(int(tags["number"]))
                ended.append(int(line["timestamp"]) / 1e9)
                took.append(float(line["metric_value"]) / 1e3)
                status.append(int(line["status"]))
    if not numbers:
        raise RuntimeError(f"k6 sent nothing: {said[-2000:]}")
    number, done = np.array(numbers), np.array(ended)
    sent = done - np.array(took)
    if plan.open_loop:
        due = arrivals(plan)
        count = max(len(due), int(number.max()) + 1)
        due = np.pad(due, (0, count - len(due)), mode="edge")
        start = float((sent - due[number]).min())
    else:
        count = int(number.max()) + 1
        start = float(sent.min())
        due = np.full(count, np.nan)
        due[number] = sent - start
    columns = {name: np.full(count, np.nan) for name in ("sent", "done")}
    columns["sent"][number] = sent - start
    columns["done"][number] = done - start
    statuses = np.full(count, LOST, np.int64)
    statuses[number] = status
    known = np.isfinite(due)
    # k6 stamps its lines with the wall clock, the rest of the report runs on the monotonic one.
    began = start - time.time() + time.monotonic()
    return Outcomes(
        due[known],
        columns["sent"][known],
        columns["done"][known],
        statuses[known],
        np.full(int(known.sum()), GOOD, np.int64),
        plan.rows if plan.method == "batch" else 1,
        cpu_seconds=cpu,
        began=began,
    )
