"""Calls a second and memory of several servers on one port, by their number.

The reference model for throughput, h2load (Debian: nghttp2-client) as the caller, on the same cores: rounds are
interleaved, and medians compare with each other only. Memory is read from a table of its own size, stored in the model
file and beside it: what workers share shows as the difference between resident and proportional size.
`just bench workers`
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.models import table, write_model
from tests.support.process import Process, running

METHOD = "recommend_api.v1.RecommenderService/Recommend"


@asynccontextmanager
async def workers(count: int, settings: Mapping[str, str]) -> AsyncIterator[tuple[Process, int, list[int]]]:
    """That many workers: the process of their supervisor, the port, and their process ids."""
    own = {"RECOMMENDER_WORKERS": str(count), **settings}
    single = count == 1
    async with running(settings=own, wait_for="ready" if single else "all workers serve") as server:
        if single:
            yield server, server.port, [server.process.pid]
        else:
            port = next(event["port"] for event in server.log if event["event"] == "port reserved")
            yield server, port, [event["pid"] for event in server.log if event["event"] == "worker started"]
        server.process.terminate()
        await server.exit_code()


async def calls_per_second(port: int, body: Path, seconds: int) -> float:
    process = await asyncio.create_subprocess_exec(
        "h2load", "-D", str(seconds), "-c", "16", "-m", "16", "-d", str(body),
        "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}/{METHOD}",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    found = re.search(r"finished in .*?, ([\d.]+) req/s", out.decode())
    assert found, out.decode()
    assert " 0 failed, 0 errored" in out.decode(), out.decode()
    return float(found[1])


def memory(pid: int) -> tuple[float, float]:
    """Resident and proportional size in MB: what is shared counts in each process in part only."""
    sizes = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    return int(sizes["Rss"]) / 1e3, int(sizes["Pss"]) / 1e3


def models(folder: Path, items: int, dim: int) -> dict[str, Path]:
    """The same table inside the model file and next to it."""
    inside = write_model(folder / "10_model.onnx", table(items, dim), default_k=10)
    (folder / "beside").mkdir()
    beside = folder / "beside" / "10_model.onnx"
    onnx.save_model(onnx.load(inside), str(beside), save_as_external_data=True, location="10_model.data")
    return {"in the model file": inside, "beside it (external data)": beside}


async def main(counts: list[int], rounds: int, seconds: int, items: int) -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        message = api.RecommendRequest(item_ids=range(1, 21)).SerializeToString()
        body = folder / "body.bin"
        body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
        seen: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(rounds):
            for count in counts:
                async with workers(count, {}) as (_, port, _):
                    await calls_per_second(port, body, 1)
                    seen[count].append(await calls_per_second(port, body, seconds))
        speeds = Table("workers", "calls/s, median", "lowest", "highest", title="reference model, 20 ids")
        for count, each in seen.items() if rounds else ():
            speeds.add_row(str(count), *(f"{value:,.0f}" for value in (statistics.median(each), min(each), max(each))))
        if rounds:
            console.print(speeds)
        if not items:
            return
        sizes = Table("table", "workers", "resident, each", "proportional, each", "proportional, all", title="MB")
        for where, model in models(folder, items, 64).items():
            for count in counts:
                async with workers(count, {"RECOMMENDER_MODEL": str(model)}) as (_, _, pids):
                    found = [memory(pid) for pid in pids]
                resident = statistics.mean(size for size, _ in found)
                shared = [size for _, size in found]
                mean = statistics.mean(shared)
                sizes.add_row(where, str(count), f"{resident:.0f}", f"{mean:.0f}", f"{sum(shared):.0f}")
        console.print(sizes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--items", type=int, default=400_000, help="rows of the table whose memory is read; 0: none")
    options = parser.parse_args()
    asyncio.run(main(options.counts, options.rounds, options.seconds, options.items))
