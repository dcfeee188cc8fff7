"""Draw the dashboards of servers under load: `just bench scene` writes docs/pictures/service.png and engine.png.

Two servers for a hundred seconds, scraped once a second by Prometheus (Debian: prometheus). The first has Envoy's edge,
tokens and a catalogue, and loads a second version. It has 8 callers, then 64, 200 and 8, each with pauses. The second
has two workers, TLS and 6 callers. The windows of the rules are scaled: hours to five seconds, 30 days to 100 s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np

from bench.facts import ROOT
from bench.serving import Server, free_port, serving
from recommender.client import Client, NewItem
from recommender.export import ExportOptions, export_model
from recommender.recommend_api.v1 import catalogue_api_pb2 as capi
from recommender.recommend_api.v1 import catalogue_api_pb2_grpc as capi_grpc
from recommender.security.access import digest_of, new_token
from tests.support.certificates import Authority

ITEMS, DIM = 10_000, 32
PHASES = (8, 64, 200, 8)
PAUSE = 0.4
WARM_UP = 5.0
TIMEOUT = 10.0
_RULES = ROOT / "deploy/observability/rules.yaml"


def export(folder: Path, version: int) -> None:
    """A version of a shop with keys, moved into its folder when it is complete."""
    keys = folder / "keys.txt"
    keys.write_text("".join(f"item {number}\n" for number in range(ITEMS)), encoding="utf-8")
    draft = folder / f"draft-{version}"
    options = ExportOptions(
        items=ITEMS, dim=DIM, seed=version, vocabulary=keys, name="shop", version=str(version),
        output=draft / "model.onnx",
    )  # fmt: skip
    export_model(options)


def publish(folder: Path, version: int) -> None:
    """Let the server find the version."""
    (folder / "shop").mkdir(exist_ok=True)
    (folder / f"draft-{version}").rename(folder / "shop" / str(version))


def shop_settings(folder: Path, tokens: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Settings of the first server; `tokens` are names, tokens and further lines."""
    items = folder / "items.csv"
    items.write_text("key,price\n" + "".join(f"item {each},{each % 97}.5\n" for each in range(ITEMS)), encoding="utf-8")
    lines = [f'[{name}]\nsha256 = ["{digest_of(token).hex()}"]\n{more}\n' for name, token, more in tokens]
    (folder / "tokens.toml").write_text("".join(lines), encoding="utf-8")
    return {
        "RECOMMENDER_EDGE": "envoy",
        "RECOMMENDER_MODEL": "shop",
        "RECOMMENDER_MODEL_POLL_MS": "500",
        "RECOMMENDER_MAX_BACKLOG": "256",
        "RECOMMENDER_TOKENS_FILE": "tokens.toml",
        "RECOMMENDER_ITEMS": items.name,
        "RECOMMENDER_MAX_NEW_ITEMS": "100",
        "RECOMMENDER_CATALOGUE_WRITES": "true",
        "RECOMMENDER_CATALOGUE_JOURNAL": "journal.sqlite",
    }


def workers_settings(folder: Path, authority: Authority) -> dict[str, str]:
    """Settings of the second server."""
    for name in ("10_model.onnx", "10_model.card.json"):
        shutil.copy(ROOT / "weights" / name, folder)
    files = authority.write_server(folder, expires=datetime.now(UTC) + timedelta(days=90))
    return {
        "RECOMMENDER_MODEL": "10_model.onnx",
        "RECOMMENDER_WORKERS": "2",
        **{f"RECOMMENDER_{name.upper()}": path.name for name, path in files.items()},
    }


@contextmanager
def prometheus(folder: Path, servers: Mapping[str, Server]) -> Iterator[str]:
    """A Prometheus that scrapes these servers once a second, with the rules scaled to seconds; gives its address."""
    rules = re.sub(r"\[30d\]", "[100s]", _RULES.read_text(encoding="utf-8"))
    rules = re.sub(r"\[\d+[mhd]\]", "[5s]", rules)
    (folder / "rules.yaml").write_text(re.sub(r"\binterval: \w+", "interval: 1s", rules), encoding="utf-8")
    targets = [
        {"targets": [f"127.0.0.1:{server.metrics_port}"], "labels": {"instance": name}}
        for name, server in servers.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "recommender", "static_configs": targets}],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w", encoding="utf-8") as log:
        command = [
            "prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while not _is_ready(address):
            if time.monotonic() > until:
                raise RuntimeError(f"prometheus: {(folder / 'prometheus.log').read_text(encoding='utf-8')}")
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
        return True
    return False


async def ask(
    client: Client, number: int, pause: float, until: float, *, timeout: float = TIMEOUT, wanted: str
) -> None:
    """Ask with pauses; errors are shown by the dashboards."""
    drawn = np.random.default_rng(number)
    while time.monotonic() < until:
        await asyncio.sleep(pause * drawn.uniform(0.5, 1.5))
        history = drawn.integers(ITEMS, size=drawn.integers(1, 40)).tolist()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await client.recommend(history, filter=wanted, timeout=timeout)


async def change(folder: Path, target: str, token: str, step: float) -> None:
    """Load version 2 after six steps (seconds); hide items and add new ones at each of twenty."""
    async with grpc.aio.insecure_channel(target) as channel, Client(target, token=token) as client:
        stub = capi_grpc.CatalogueServiceStub(channel)
        for number in range(20):
            await asyncio.sleep(step)
            if number == 6:
                await asyncio.to_thread(publish, folder, 2)
            request = capi.HideItemsRequest(item_keys=[f"item {number * 250 + place}" for place in range(250)])
            await stub.HideItems(request, timeout=TIMEOUT, metadata=(("authorization", f"Bearer {token}"),))
            version = 2 if number > 9 else 1
            vectors = np.random.default_rng(number).random((5, DIM), dtype=np.float32)
            items = [NewItem(f"new {number} {place}", row.tolist()) for place, row in enumerate(vectors)]
            await client.upsert_items(f"shop@{version}", items, timeout=TIMEOUT)


async def load(
    folder: Path, shop: Server, workers: Server, authority: Authority, tokens: Sequence[str], seconds: float
) -> None:
    """All callers, for so many seconds."""
    web, catalogue, trial = tokens
    started = time.monotonic() + WARM_UP
    end = started + seconds
    trusting = grpc.ssl_channel_credentials(authority.pem)
    async with contextlib.AsyncExitStack() as clients, asyncio.TaskGroup() as tasks:

        async def client(target: str, **options: object) -> Client:
            return await clients.enter_async_context(Client(target, **options))  # type: ignore[arg-type]

        for number in range(6):
            caller = await client(workers.target, credentials=trusting)
            tasks.create_task(ask(caller, number, 0.05, end, wanted=""))
        tasks.create_task(change(folder, shop.target, catalogue, seconds / 22))
        without = await client(shop.target, token=new_token())
        tasks.create_task(ask(without, 1, 0.25, end, wanted=""))
        greedy = await client(shop.target, token=trial)
        tasks.create_task(ask(greedy, 3, 1.6, end, timeout=0.3, wanted=""))
        hasty = await client(shop.target, token=web)
        tasks.create_task(ask(hasty, 2, 12.0, end, timeout=0.0015, wanted=""))
        for phase, callers in enumerate(PHASES):
            until = started + seconds * (phase + 1) / len(PHASES)
            async with contextlib.AsyncExitStack() as open_, asyncio.TaskGroup() as present:
                for number in range(callers):
                    caller = await open_.enter_async_context(Client(shop.target, token=web))
                    wanted = f"item.price < {10 * (number % 4 + 1)}.0" if number % 8 == 0 else ""
                    present.create_task(ask(caller, number, PAUSE, until, wanted=wanted))


def main() -> None:
    """Run the scene, and draw the dashboards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/pictures", help="the folder of the pictures")
    arguments = parser.parse_args()
    (web, catalogue, trial), authority = (new_token() for _ in range(3)), Authority()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        for version in (1, 2):
            export(folder, version)
        publish(folder, 1)
        tokens = [
            ("web", web, "requests_per_second = 100000"),
            ("catalogue", catalogue, 'scopes = ["catalogue"]'),
            ("trial", trial, "requests_per_second = 1"),
        ]
        shop = running.enter_context(serving(settings=shop_settings(folder, tokens), cwd=folder))
        workers = running.enter_context(serving(settings=workers_settings(folder, authority), cwd=folder))
        address = running.enter_context(prometheus(folder, {"first": shop, "second": workers}))
        asyncio.run(load(folder, shop, workers, authority, (web, catalogue, trial), arguments.seconds))
        options = ("--minutes", str(arguments.seconds / 60), "--window", "5s", "--output", arguments.output)
        plots = ROOT / "deploy/observability/plots.py"
        subprocess.run([sys.executable, plots, "--prometheus", address, *options], check=True)


if __name__ == "__main__":
    main()
