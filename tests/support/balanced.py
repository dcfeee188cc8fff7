"""Three servers in separate processes behind Envoy, with steady callers that never retry."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml

from recommender.api.metadata import SERVICE_NAME
from recommender.recommend_api.v1 import recommend_api_pb2 as api
from tests.support.facts import FACTS
from tests.support.paths import ROOT
from tests.support.process import PATIENCE, Process, running
from tests.support.programs import program

CONFIG = ROOT / "deploy/envoy/envoy.yaml"
GOOD = api.RecommendRequest(item_ids=[0]).SerializeToString()
TIMEOUT = 30.0
SETTINGS = {"RECOMMENDER_DRAIN_WAIT_MS": "4000", "RECOMMENDER_THREADS": "1"}


def free_ports(count: int) -> list[int]:
    """Unused ports. Another process might take one before they are used."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Fleet:
    """The servers by their ports; each can be restarted."""

    ports: list[int]
    servers: dict[int, Process] = field(default_factory=dict)
    stacks: dict[int, AsyncExitStack] = field(default_factory=dict)

    async def start(self, port: int) -> None:
        """Start a server on a port and wait until it is ready."""
        stack = self.stacks[port] = AsyncExitStack()
        self.servers[port] = await stack.enter_async_context(running("--port", str(port), settings=SETTINGS))

    async def stop(self, port: int, number: signal.Signals) -> int:
        """Signal a server and wait for its end; its exit code."""
        server = self.servers[port]
        server.signal(number)
        code = await server.exit_code()
        await self.stacks.pop(port).aclose()
        return code


@asynccontextmanager
async def fleet(count: int = 3) -> AsyncIterator[Fleet]:
    """That many servers, all ready."""
    made = Fleet(free_ports(count))
    try:
        for port in made.ports:
            await made.start(port)
        yield made
    finally:
        for stack in made.stacks.values():
            await stack.aclose()


@dataclass(frozen=True)
class Envoy:
    """A running Envoy: the address for calls, and that of its administration."""

    port: int
    admin: int

    async def healthy(self) -> set[int]:
        """The ports of the servers that it sends calls to."""
        seen = json.loads(await asyncio.to_thread(_read, f"http://127.0.0.1:{self.admin}/clusters?format=json"))
        return {
            int(host["address"]["socket_address"]["port_value"])
            for status in seen["cluster_statuses"]
            for host in status["host_statuses"]
            if not {"failed_active_health_check", "failed_outlier_check"} & set(host["health_status"])
        }

    async def until_healthy(self, ports: set[int]) -> None:
        """Wait until it sends calls to these servers and no others."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    if await self.healthy() == ports:
                        return
                except OSError:
                    pass
                await asyncio.sleep(0.05)


def _read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310 (Envoy's own page)
        return bytes(answer.read())


@asynccontextmanager
async def envoy(ports: list[int], folder: Path) -> AsyncIterator[Envoy]:
    """The committed configuration, with these servers as upstreams and free ports."""
    own, admin = free_ports(2)
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources: Mapping[str, Any] = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"]["port_value"] = own
    (endpoints,) = resources["clusters"][0]["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        program("envoy"), "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error",
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        running_envoy = Envoy(own, admin)
        await running_envoy.until_healthy(set(ports))
        yield running_envoy
    finally:
        process.kill()
        await process.wait()


@dataclass
class Load:
    """Steady callers without retries, and the outcomes of their calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failed_at: list[float] = field(default_factory=list)
    open: int = 0
    slowest: float = 0.0

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        """One call, noted."""
        self.open += 1
        began = time.monotonic()
        try:
            answer = api.RecommendResponse.FromString(await method(GOOD, timeout=TIMEOUT))
        except grpc.aio.AioRpcError as error:
            self.outcomes[f"{error.code().name}: {error.details()}"] += 1
            self.failed_at.append(time.monotonic())
        else:
            self.outcomes["answered" if list(answer.item_ids) == FACTS[0,] else "wrong"] += 1
        finally:
            self.open -= 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    async def until(self, calls: int) -> None:
        """Wait until that many calls have ended."""
        async with asyncio.timeout(PATIENCE):
            while self.outcomes.total() < calls:  # noqa: ASYNC110 (callers continue anyway)
                await asyncio.sleep(0.05)

    @property
    def failed(self) -> int:
        """Calls that were not answered, or not right."""
        return self.outcomes.total() - self.outcomes["answered"]


@asynccontextmanager
async def load(target: str, callers: int = 8, pause: float = 0.03, **options: int | str) -> AsyncIterator[Load]:
    """Steady load on a target meanwhile."""
    seen = Load()
    going = True
    arguments = [("grpc.enable_retries", 0), *((f"grpc.{key}", value) for key, value in options.items())]
    async with grpc.aio.insecure_channel(target, arguments) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE_NAME}/Recommend")

        async def caller() -> None:
            while going:
                await seen.call(method)
                await asyncio.sleep(pause * (0.5 + random.random()))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller())
            try:
                yield seen
            finally:
                going = False
