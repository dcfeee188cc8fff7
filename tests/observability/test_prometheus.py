"""A real Prometheus on real servers in real trouble: every panel's query has data, and every alert fires."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from recommender.client import Client
from tests.support.models import table, write_model
from tests.support.paths import ROOT, WEIGHTS
from tests.support.process import Process, running
from tests.support.serving import Serve
from tests.support.versions import K, write_version

FOLDER = ROOT / "deploy/observability"
TIMEOUT = 30.0
PATIENCE = 100.0

pytestmark = pytest.mark.system("prometheus", "promtool")

SCALE = {"1m": "4s", "5m": "4s", "10m": "5s", "30m": "5s", "1h": "6s", "2h": "6s", "6h": "8s", "1d": "8s", "3d": "10s"}
"""Hours as seconds: the windows of the rules, so that a test can fill them."""


def panels() -> dict[str, str]:
    """Every query of every panel, by dashboard and title, with the variables filled in as Grafana would."""
    queries = {}
    for path in sorted((FOLDER / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$__rate_interval", "4s")
                for variable in ("$job", "$instance"):
                    expression = expression.replace(variable, ".*")
                assert "$" not in expression
                queries[f"{path.stem}: {panel['title']}: {target['legendFormat']}"] = expression
    return queries


def quick_rules() -> str:
    """The rules as they are, with every window and every patience some seconds long."""
    rules = (FOLDER / "rules.yaml").read_text(encoding="utf-8")
    rules = re.sub(r"\[(\w+)\]", lambda found: f"[{SCALE[found[1]]}]", rules)
    return re.sub(r"\b(for|interval): \w+", r"\1: 1s", rules)


def alerts() -> set[str]:
    return set(re.findall(r"- alert: (\w+)", (FOLDER / "rules.yaml").read_text(encoding="utf-8")))


@dataclass
class Prometheus:
    """A running Prometheus."""

    port: int
    seen: set[str] = field(default_factory=set)
    fired: set[str] = field(default_factory=set)

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def look(self) -> None:
        """Note which panels have had a number, and which alerts have fired."""
        for name, query in panels().items():
            if name not in self.seen:
                samples = self.get("query", query=query)["result"]
                if any(math.isfinite(float(sample["value"][1])) for sample in samples):
                    self.seen.add(name)
        self.fired |= {
            alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"
        }


@asynccontextmanager
async def prometheus(folder: Path, targets: dict[str, Sequence[int]]) -> AsyncIterator[Prometheus]:
    """Scrape these ports, by job, twice a second."""
    (folder / "rules.yaml").write_text(quick_rules(), encoding="utf-8")
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        for job, ports in targets.items()
    ]
    every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config = folder / "prometheus.yaml"
    config.write_text(json.dumps({"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}))  # YAML too
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 (starts at once)
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0, (folder / "log").read_text(encoding="utf-8")


@asynccontextmanager
async def going_on(*works: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do each of these over and over meanwhile."""

    async def again(work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await work()

    tasks = [asyncio.create_task(again(work)) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def asking(
    server_port: int, clients: contextlib.AsyncExitStack, history: list[int], *, pause: float = 0.0
) -> Callable[[], Awaitable[object]]:
    """Ask a server, and rest for `pause` seconds; what it answers is the metrics' affair."""
    client = Client(f"127.0.0.1:{server_port}")
    clients.push_async_callback(client.close)

    async def ask() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await client.recommend(history, timeout=TIMEOUT)
        await asyncio.sleep(pause)

    return ask


def stalling(server: Process) -> Callable[[], Awaitable[object]]:
    """Stop the process for a moment, again and again: its event loop comes late."""

    async def stall() -> None:
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(0.3)
        server.signal(signal.SIGCONT)
        await asyncio.sleep(0.5)

    return stall


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "rules.yaml"],
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "rules_test.yaml"],
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: list[str]) -> None:
    found = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_unit_test_that_fires_it() -> None:
    tested = (FOLDER / "rules_test.yaml").read_text(encoding="utf-8")
    fired = set(re.findall(r"- alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:", tested))

    assert fired == alerts()


async def test_every_panel_has_data_and_every_alert_fires_when_it_should(serve: Serve, tmp_path: Path) -> None:
    slow = write_model(tmp_path / "5_model.onnx", table(), burn=100)
    hanging = {"RECOMMENDER_METRICS_PORT": "0", "RECOMMENDER_ENGINE_TIMEOUT_MS": "600000"}
    overloaded = {"model": slow, "num_recommendations": 5, "max_batch_size": 1, "max_backlog": 2}
    versions = {"num_recommendations": K, "model_poll_ms": 200, "metrics_port": 0}
    for name in ("shop", "gone"):
        write_version(tmp_path / name / "1", 1)
    async with (
        serve(model=tmp_path / "shop", **versions) as refusing,
        serve(model=tmp_path / "gone", **versions) as orphaned,
        serve(metrics_port=0) as well,
        serve(metrics_port=0, model=WEIGHTS / "5_model.onnx", num_recommendations=5) as other_model,
        serve(metrics_port=0, **overloaded) as full,
        serve(metrics_port=0) as forgotten,
        running(settings=hanging, module="tests.support.hanging") as stuck,
        running(settings=hanging, module="tests.support.hanging") as stalled,
        contextlib.AsyncExitStack() as clients,
        prometheus(
            tmp_path,
            {
                "recommender": [
                    well.metrics_port, other_model.metrics_port, full.metrics_port,
                    refusing.metrics_port,
                    orphaned.metrics_port,
                    metrics_port(stuck), metrics_port(stalled), 1,
                ],
                "forgotten": [forgotten.metrics_port],
            },
        ) as looking,
        going_on(
            asking(well.port, clients, [1, 2], pause=0.2),
            *(asking(full.port, clients, [1]) for _ in range(8)),
            asking(stuck.port, clients, [14], pause=0.2),
            stalling(stalled),
        ),
        Client(f"127.0.0.1:{stuck.port}") as hopeless,
    ):  # fmt: skip
        write_version(tmp_path / "shop" / "2", 2, schema_version=99)
        shutil.rmtree(tmp_path / "gone")
        hung: asyncio.Task[object] | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                while looking.seen < set(panels()) or looking.fired < alerts():
                    await asyncio.sleep(0.5)
                    with contextlib.suppress(OSError):  # it is not up yet
                        await asyncio.to_thread(looking.look)
                    if hung is None and "RecommenderEngineFails" in looking.fired:
                        hung = asyncio.create_task(hopeless.recommend([13], timeout=PATIENCE))
        except TimeoutError:
            pass  # what is missing is said below
        finally:
            if hung is not None:
                hung.cancel()

        assert sorted(set(panels()) - looking.seen) == [], "queries without data"
        assert sorted(alerts() - looking.fired) == [], "alerts that did not fire"


def metrics_port(server: Process) -> int:
    (event,) = (event for event in server.log if event["event"] == "metrics")
    return int(event["address"].rsplit(":", 1)[1].split("/")[0])
