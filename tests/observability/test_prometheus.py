"""A real Prometheus on real servers in real trouble: every panel's query has data, and every alert fires."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from recommender.client import Client
from recommender.security.access import digest_of, new_token
from tests.support.adding import exported_shop
from tests.support.certificates import Authority
from tests.support.collector import collecting
from tests.support.models import table, write_model
from tests.support.paths import ROOT, WEIGHTS
from tests.support.process import Process, running
from tests.support.serving import Serve
from tests.support.versions import UNTRIED, K, write_version

FOLDER = ROOT / "deploy/observability"
TIMEOUT = 30.0
PATIENCE = 200.0
METHOD = "recommend_api.v1.RecommenderService/Recommend"

pytestmark = pytest.mark.system("prometheus", "promtool")

SCALE = {
    "1m": "4s", "5m": "4s", "10m": "5s", "30m": "5s", "1h": "6s", "2h": "6s", "6h": "8s", "1d": "8s", "3d": "10s",
    "30d": "12s",
}  # fmt: skip
"""Hours as seconds: the windows of the rules, so that a test can fill them."""


def panels() -> dict[str, str]:
    """Every query of every panel and annotation, by dashboard and title, with variables filled in as Grafana would."""
    queries = {}
    for path in sorted((FOLDER / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                queries[f"{path.stem}: {panel['title']}: {target['legendFormat']}"] = filled_in(target["expr"])
        for annotation in dashboard["annotations"]["list"]:
            queries[f"{path.stem}: {annotation['name']}"] = filled_in(annotation["expr"])
    return queries


def filled_in(expression: str) -> str:
    expression = expression.replace("$__rate_interval", "4s")
    for variable in ("$job", "$instance"):
        expression = expression.replace(variable, ".*")
    assert "$" not in expression
    return expression


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

    def has_scraped(self) -> bool:
        """Whether it is up and has scraped a server that loads models."""
        with contextlib.suppress(OSError):
            return bool(self.get("query", query="recommender_model_reloads_total")["result"])
        return False

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
             f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        looking = Prometheus(port)
        async with asyncio.timeout(PATIENCE):
            # What changes before the first scrape is no change to it.
            while not await asyncio.to_thread(looking.has_scraped):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.1)
        yield looking
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
    server_port: int,
    clients: contextlib.AsyncExitStack,
    history: list[int],
    *,
    pause: float = 0.0,
    wanted: str = "",
    **options: Any,
) -> Callable[[], Awaitable[object]]:
    """Ask a server, and rest for `pause` seconds; what it answers is the metrics' affair."""
    client = Client(f"127.0.0.1:{server_port}", **options)
    clients.push_async_callback(client.close)

    async def ask() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await client.recommend(history, filter=wanted, timeout=TIMEOUT)
        await asyncio.sleep(pause)

    return ask


def stalling(server: Process) -> Callable[[], Awaitable[object]]:
    """Stop the process for a moment, again and again, so that its event loop is late."""

    async def stall() -> None:
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(0.3)
        server.signal(signal.SIGCONT)
        await asyncio.sleep(0.5)

    return stall


def killing(server: Process) -> Callable[[], Awaitable[object]]:
    """Kill the worker that has come up last, four times: with every early death one is down for longer."""
    left = iter(range(4))  # after the fifth the supervisor gives up

    async def kill() -> None:
        if next(left, None) is None:
            await asyncio.sleep(TIMEOUT)
            return
        worker = [event for event in server.log if event["event"] == "worker serves"][-1]
        os.kill(worker["pid"], signal.SIGKILL)
        await server.until("worker serves")

    return kill


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


@pytest.mark.timeout(300)
async def test_every_panel_has_data_and_every_alert_fires_when_it_should(serve: Serve, tmp_path: Path) -> None:
    hanging = {"RECOMMENDER_METRICS_PORT": "0", "RECOMMENDER_ENGINE_TIMEOUT_MS": "600000"}
    several = {"RECOMMENDER_WORKERS": "2", "RECOMMENDER_METRICS_PORT": "0"}
    async with contextlib.AsyncExitStack() as open_:
        start = open_.enter_async_context
        well = await start(serve(metrics_port=0))
        other_model = await start(serve(metrics_port=0, model=WEIGHTS / "5_model.onnx", num_recommendations=5))
        forgotten = await start(serve(metrics_port=0))
        behind_envoy = await start(serve(metrics_port=0, edge="envoy"))
        full = await start(serve(**overloaded(tmp_path)))
        refusing, orphaned, trying = [await start(serve(**settings)) for settings in following(tmp_path)]
        secured = await start(serve(**secrets(tmp_path), metrics_port=0, secrets_reload_ms=200))
        stocked = await start(serve(**with_a_catalogue(tmp_path)))
        stuck = await start(running(settings=hanging, module="tests.support.hanging"))
        stalled = await start(running(settings=hanging, module="tests.support.hanging"))
        both = await start(running(settings=several, wait_for="all workers serve"))
        open_.callback(both.signal, signal.SIGTERM)  # killed alone it would leave its workers behind
        here = [well, other_model, full, refusing, orphaned, trying, secured, behind_envoy, stocked]
        ports = [server.metrics_port for server in here] + [metrics_port(each) for each in (stuck, stalled, both)]
        looking = await start(prometheus(tmp_path, {"recommender": [*ports, 1], "forgotten": [forgotten.metrics_port]}))
        trusting = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
        token = (tmp_path / "web.token").read_text(encoding="utf-8")
        await start(
            going_on(
                asking(well.port, open_, [1, 2], pause=0.2),
                *(asking(full.port, open_, [1]) for _ in range(8)),
                asking(stuck.port, open_, [14], pause=0.2),
                asking(secured.port, open_, [1], pause=0.2, credentials=trusting, token=token),
                asking(secured.port, open_, [1], pause=0.2, credentials=trusting),
                asking(behind_envoy.port, open_, [1], pause=0.2),
                asking(stocked.port, open_, [1], pause=0.2, wanted="item.price > 1.0"),
                asking(trying.port, open_, [UNTRIED], pause=0.05),
                asking(both_port(both), open_, [1], pause=0.2),
                stalling(stalled),
                killing(both),
            )
        )
        hopeless = await start(Client(f"127.0.0.1:{stuck.port}"))
        write_version(tmp_path / "shop" / "2", 2, schema_version=99)
        shutil.rmtree(tmp_path / "gone")
        (tmp_path / "tokens.toml").write_text("no TOML", encoding="utf-8")
        hung: asyncio.Task[object] | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                while looking.seen < set(panels()) or looking.fired < alerts():
                    await asyncio.sleep(0.5)
                    await asyncio.to_thread(looking.look)
                    if hung is None and "RecommenderEngineFails" in looking.fired:
                        hung = asyncio.create_task(hopeless.recommend([13], timeout=PATIENCE))
        except TimeoutError:
            pass  # what is missing is said below
        finally:
            if hung is not None:
                hung.cancel()

        without_data, silent = sorted(set(panels()) - looking.seen), sorted(alerts() - looking.fired)
        assert (without_data, silent) == ([], []), "queries without data, alerts that did not fire"


async def test_a_slow_bucket_leads_to_its_trace(tmp_path: Path) -> None:
    with collecting() as collector:
        settings = {
            "RECOMMENDER_METRICS_PORT": "0",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        async with (
            running(settings=settings) as server,
            prometheus(tmp_path, {"recommender": [metrics_port(server)]}) as looking,
        ):
            async with Client(f"127.0.0.1:{server.port}") as client:
                await client.recommend([1], timeout=TIMEOUT)
            found: list[Any] = []
            async with asyncio.timeout(PATIENCE):
                while not found:
                    await asyncio.sleep(0.2)
                    now = str(datetime.now(UTC).timestamp())
                    query = {"query": "rpc_server_call_duration_seconds_bucket", "start": "0", "end": now}
                    found = await asyncio.to_thread(looking.get, "query_exemplars", **query)
            await asyncio.to_thread(collector.until, lambda: collector.named(METHOD))

    (call,) = collector.named(METHOD)
    (series,) = found
    assert series["seriesLabels"]["rpc_method"] == METHOD
    (exemplar,) = series["exemplars"]
    assert exemplar["labels"] == {"trace_id": call.trace_id.hex(), "span_id": call.span_id.hex()}
    assert float(exemplar["value"]) <= float(series["seriesLabels"]["le"])


def overloaded(folder: Path) -> dict[str, Any]:
    """Settings of a server that has more callers than it can serve."""
    slow = write_model(folder / "5_model.onnx", table(), burn=100)
    return {"model": slow, "num_recommendations": 5, "max_batch_size": 1, "max_backlog": 2, "metrics_port": 0}


def with_a_catalogue(folder: Path) -> dict[str, Any]:
    """Settings of a server that filters by attributes, and whose catalogue calls may change."""
    items = folder / "items.csv"
    items.write_text("key,price\nitem 1,0.5\nitem 2,2.5\n", encoding="utf-8")
    (folder / "stocked").mkdir()
    return {
        "model": exported_shop(folder / "stocked", 50),
        "num_recommendations": 10,
        "items": items,
        "catalogue_writes": True,
        "catalogue_journal": folder / "journal.sqlite",
        "metrics_port": 0,
    }


def following(folder: Path) -> list[dict[str, Any]]:
    """Settings of a server that will refuse a version, of one whose source will vanish, and of one with a bad
    candidate."""
    for model in ("shop/1", "gone/1", "live/tried/1"):
        write_version(folder / model, 1)
    write_version(folder / "tried/2", 2, fails_on=UNTRIED)
    common = {"num_recommendations": K, "model_poll_ms": 200, "metrics_port": 0}
    trial = {"candidate": folder / "tried", "candidate_share_percent": 50, "candidate_least_requests": 20}
    return [
        {**common, "model": folder / "shop"},
        {**common, "model": folder / "gone"},
        {**common, "model": folder / "live/tried", **trial},
    ]


def secrets(folder: Path) -> dict[str, Any]:
    """Settings of a server whose certificate expires today and whose token has few requests."""
    token, authority = new_token(), Authority()
    (folder / "web.token").write_text(token, encoding="utf-8")
    authority.write_pem(folder / "ca.pem")
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[web]\nsha256 = ["{digest_of(token).hex()}"]\nrequests_per_second = 2\n', encoding="utf-8")
    expires = datetime.now(UTC) + timedelta(hours=12)
    return {**authority.write_server(folder, expires=expires), "tokens_file": tokens}


def both_port(server: Process) -> int:
    (port,) = (event["port"] for event in server.log if event["event"] == "port reserved")
    return int(port)


def metrics_port(server: Process) -> int:
    # Of several workers each has its own endpoint, and the supervisor has the one for all.
    event = next(event for event in server.log if event["event"] == "metrics" and "worker" not in event)
    return int(event["address"].rsplit(":", 1)[1].split("/")[0])
