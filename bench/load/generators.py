"""Compare load generators: their cost of a request, and the latency that they report for the same server.

Ours and k6 send the same plan to one server at the same rate, h2load (Debian: nghttp2-client) as many calls of one
history, in interleaved rounds. `just bench generators`
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.load.http2 import framed
from bench.load.plan import Phase, Plan
from bench.load.run import run, warm_up
from bench.serving import serving
from recommender.recommend_api.v1 import recommend_api_pb2 as api


def h2load(plan: Plan, body: Path) -> float:
    """CPU seconds a request of h2load at the plan's rate."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    calls, clients = round(plan.phases[0].rate * plan.seconds), plan.connections
    subprocess.run(
        ["h2load", "-n", str(calls), "-c", str(clients), "-m", "64", "-t", "1", "-d", str(body),
         "--rps", str(plan.phases[0].rate / clients), "-H", "content-type: application/grpc", "-H", "te: trailers",
         f"http://{plan.target}/recommend_api.v1.RecommenderService/Recommend"],
        check=True, capture_output=True,
    )  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime) / calls


def _told(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seen: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with serving() as server, tempfile.TemporaryDirectory() as folder:
        plan = Plan(server.target, (Phase(arguments.seconds, arguments.rate, arguments.rate),))
        warm_up(plan)
        body = Path(folder, "body")
        body.write_bytes(framed(api.RecommendRequest(item_ids=plan.histories()[0]).SerializeToString()))
        for _ in range(arguments.rounds):
            for name in ("own", "k6"):
                done = run(plan, generator=name)
                whole = done.whole()
                seen[name].append((done.generator_cpu, whole.quantile(0.5), whole.quantile(0.99)))
            if shutil.which("h2load"):
                seen["h2load"].append((h2load(plan, body), float("nan"), float("nan")))
    table = Table("generator", "µs CPU a request, median", "least", "most", "p50 ms, median", "p99 ms, median")
    for name, rounds in seen.items():
        cpu = [each[0] * 1e6 for each in rounds]
        p50, p99 = (statistics.median(each[at] for each in rounds) * 1e3 for at in (1, 2))
        table.add_row(
            name,
            *(f"{value:,.0f}" for value in (statistics.median(cpu), min(cpu), max(cpu))),
            _told(p50),
            _told(p99),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
