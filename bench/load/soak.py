"""Does the service stay correct, and constant in size, under long mixed load and faults: `just soak 30`.

Two workers under their supervisor (one server behind Envoy with `--edge envoy`) have TLS and tokens. Clients send
single calls, batch calls and streams. Some leave in the middle, have hardly any time, read slowly, send nonsense, have
a wrong token or reconnect. Meanwhile certificates and tokens are replaced, new versions of the model arrive, some of
them broken, and worker 0 is killed again and again. Memory and open files of the other processes are measured. Every
answer is compared with brute force over the table of its version.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import get_args

import grpc
import numpy as np
import numpy.typing as npt
from rich.console import Console

from bench.load.growth import Growth
from recommender.client import Client, Recommendations, Refusal, Request
from recommender.domain import Ranking
from recommender.models.card import MODEL_NAME
from recommender.security.access import digest_of, new_token
from recommender.settings.network import Edge
from tests.support.certificates import Authority
from tests.support.process import Process, running
from tests.support.versions import K, embeddings_of, write_version

ITEMS = 2000
MODEL = "soaked"
TOLERANCE = 1e-4
TIMEOUT = 30.0
MINUTE = 60.0
LOST = "Internal error from Core"


class Soak:
    """One soak: its calls and their outcomes, and the resources of the processes."""

    def __init__(self, folder: Path, end: float, edge: Edge) -> None:
        self.folder = folder
        self.edge = edge
        self.end = end
        self.begun = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        """By the version that answered."""
        self.wrong: list[str] = []
        self.kills = 0
        self.replaced = 0
        self.recoveries: list[float] = []
        self.growth = Growth()
        self.tables: dict[int, npt.NDArray[np.float64]] = {}
        """The item embeddings by version."""
        self.versions = 0
        self.broken = 0
        self.authority = Authority()
        self.tokens = [new_token()]
        self.target = ""

    def settings(self) -> dict[str, str]:
        """Settings of the server; writes the files that they name."""
        files = self.authority.write_server(self.folder)
        self.write_tokens()
        self.write_version()
        return {
            **{f"RECOMMENDER_{name.upper()}": str(path) for name, path in files.items()},
            "RECOMMENDER_MODEL": str(self.models),
            "RECOMMENDER_NUM_RECOMMENDATIONS": str(K),
            "RECOMMENDER_MODEL_POLL_MS": "1000",
            "RECOMMENDER_TOKENS_FILE": str(self.folder / "tokens.toml"),
            "RECOMMENDER_SECRETS_RELOAD_MS": "1000",
            "RECOMMENDER_MAX_CONNECTION_AGE_MS": "20000",
            "RECOMMENDER_EDGE": self.edge,
            "RECOMMENDER_WORKERS": "2" if self.edge == "grpc" else "1",
            "RECOMMENDER_HEALTH_PORT": "0",
            "RECOMMENDER_METRICS_PORT": "0",
        }

    def write_tokens(self) -> None:
        """Make the present tokens the good ones."""
        digests = ", ".join(f'"{digest_of(token).hex()}"' for token in self.tokens)
        text = f"[soak]\nsha256 = [{digests}]\nconcurrent_calls = 10000\n"
        made = self.folder / "tokens.new"
        made.write_text(text, encoding="utf-8")
        made.replace(self.folder / "tokens.toml")

    @property
    def models(self) -> Path:
        """The folder of the model's versions."""
        return self.folder / MODEL

    def write_version(self, *, broken: bool = False) -> None:
        """The next version; those before the last three go."""
        self.versions += 1
        self.tables[self.versions] = embeddings_of(self.versions, ITEMS).astype(np.float64)
        if broken:
            self.broken += 1
        write_version(
            self.models / str(self.versions),
            self.versions,
            items=ITEMS,
            spoil=(lambda draft: os.truncate(draft / MODEL_NAME, 1000)) if broken else (lambda _: None),
        )
        shutil.rmtree(self.models / str(self.versions - 3), ignore_errors=True)

    def going(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.end

    def client(self, token: str | None = None) -> Client:
        """A client with that token, or with the present one."""
        credentials = grpc.ssl_channel_credentials(self.authority.pem)
        return Client(self.target, credentials=credentials, token=token or self.tokens[-1])

    async def caller(self, seed: int) -> None:
        """A caller that reconnects now and then."""
        draw = random.Random(seed)
        kinds = ("one", "batch", "stream", "leave", "late", "slow", "nonsense", "wrong token")
        while self.going():
            async with self.client() as client:
                for _ in range(draw.randrange(5, 100)):
                    kind = draw.choices(kinds, (54, 10, 10, 10, 4, 2, 8, 2))[0]
                    await self.noted(kind, self.act(kind, client, draw))
                    await asyncio.sleep(draw.random() * 0.1)
                    if not self.going():
                        return

    async def noted(self, kind: str, call: Awaitable[str]) -> None:
        """Count how a call ended; an outcome that is not expected of its kind is counted under its own name."""
        try:
            outcome = await call
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
            if error.details() == LOST:
                outcome += " (the client's own word for a connection that is lost while it writes)"
            elif outcome in ("INTERNAL", "UNKNOWN"):
                self.wrong.append(f"{kind}: {error.details()}")
        self.outcomes[f"{kind}: {outcome}"] += 1

    async def act(self, kind: str, client: Client, draw: random.Random) -> str:
        """Do one thing, and say how it went; what the server refuses is raised."""
        lengths = [draw.randrange(1, 30) for _ in range(draw.randrange(1, 20))]
        histories = [[draw.randrange(ITEMS) for _ in range(length)] for length in lengths]
        if kind in ("one", "late"):
            timeout = TIMEOUT if kind == "one" else draw.random() * 0.005
            self.check(histories[0], await client.recommend(histories[0], timeout=timeout))
        elif kind == "batch":
            requests = [Request(item_ids=history) for history in histories]
            for history, outcome in zip(histories, await client.recommend_many(requests, timeout=TIMEOUT), strict=True):
                self.check(history, outcome)
        elif kind in ("stream", "slow"):

            async def asked() -> AsyncIterator[Request]:
                for history in histories:
                    yield Request(item_ids=history)

            async for row, outcome in client.stream(asked(), timeout=TIMEOUT):
                self.check(histories[row], outcome)
                await asyncio.sleep(draw.random() if kind == "slow" else 0)
        elif kind == "leave":
            call = asyncio.create_task(client.recommend(histories[0], timeout=TIMEOUT))
            await asyncio.sleep(draw.random() * 0.004)
            call.cancel()
            await asyncio.wait({call})
        elif kind == "nonsense":
            bad = draw.choice(({"limit": -1}, {"limit": 10_000}, {"model": "nobody"}, {"candidate_item_ids": [1]}))
            await client.recommend([-5] if draw.random() < 0.3 else histories[0], timeout=TIMEOUT, **bad)
        else:
            async with self.client(new_token()) as unknown:
                await unknown.recommend([1], timeout=TIMEOUT)
        return "as it should be" if kind != "leave" else "left"

    def check(self, history: list[int], outcome: Recommendations | Refusal) -> None:
        """Hold an answer to brute force."""
        if isinstance(outcome, Refusal):
            self.outcomes[f"refused within a call: {outcome.code.name}"] += 1
            return
        self.outcomes["answers checked"] += 1
        found = Ranking(list(outcome.item_ids), list(outcome.scores))
        version = outcome.model_version
        self.answered[version] += 1
        if not found.equals(self.expected(history, int(version.removeprefix(f"{MODEL}@"))), TOLERANCE):
            self.wrong.append(f"{version}, {history}: {found}")

    def expected(self, history: list[int], version: int) -> Ranking:
        """The ranking by brute force."""
        scores: npt.NDArray[np.float64] = self.tables[version] @ self.tables[version][history].mean(0)
        order = np.argsort(-scores, kind="stable")[:K].tolist()
        return Ranking(order, [float(scores[item]) for item in order])

    async def chaos(self, server: Process) -> None:
        """Replace secrets and, every other time, the model every quarter of a minute; kill worker 0 every sixth time.

        Every fifth version is broken.
        """
        turn = 0
        while self.going():
            await asyncio.sleep(MINUTE / 4)
            self.authority.write_server(self.folder)
            # The previous token stays valid for one turn, in which callers change over.
            self.tokens = [self.tokens[-1], new_token()]
            self.write_tokens()
            self.replaced += 1
            turn += 1
            if turn % 2 == 0:
                self.write_version(broken=self.versions % 5 == 4)
            if turn % 6 == 0 and self.edge == "grpc" and self.going():
                os.kill(pid_of(server, 0), signal.SIGKILL)
                killed = time.monotonic()
                self.kills += 1
                before = starts(server, 0)
                while starts(server, 0) == before or serves(server, 0) < starts(server, 0):  # noqa: ASYNC110 (of a log)
                    await asyncio.sleep(0.05)
                self.recoveries.append(time.monotonic() - killed)

    async def measure(self, server: Process) -> None:
        """Note the resources of the long-lived processes."""
        if self.edge == "grpc":
            pids = {"supervisor": server.process.pid, "worker 1": pid_of(server, 1)}
        else:
            pids = {"supervisor": server.process.pid, "Envoy with the server": server.children()[0]}
        while self.going():
            self.growth.note(pids)
            await asyncio.sleep(5)

    def report(self, code: int) -> list[str]:
        """The result, as lines of Markdown."""
        minutes = (time.monotonic() - self.begun) / MINUTE
        lines = [f"{minutes:.0f} minutes, exit code {code}", ""]
        lines += [f"- {count:,} × {name}" for name, count in sorted(self.outcomes.items())]
        lines += ["", f"- certificates and tokens replaced {self.replaced} times, worker 0 killed {self.kills} times"]
        lines.append(
            f"- versions written {self.versions}, {self.broken} of them broken; {len(self.answered)} have answered"
        )
        if self.recoveries:
            median, worst = statistics.median(self.recoveries), max(self.recoveries)
            lines.append(f"- seconds from a kill until the worker serves again: median {median:.1f}, worst {worst:.1f}")
        lines += self.growth.lines()
        lines += ["", f"- wrong: {len(self.wrong)}", *(f"  - {each}" for each in self.wrong[:20])]
        return lines


def pid_of(server: Process, worker: int) -> int:
    pids = [event["pid"] for event in server.log if event["event"] == "worker started" and event["worker"] == worker]
    return int(pids[-1])


def starts(server: Process, worker: int) -> int:
    return sum(event["event"] == "worker started" and event["worker"] == worker for event in server.log)


def serves(server: Process, worker: int) -> int:
    return sum(event["event"] == "worker serves" and event["worker"] == worker for event in server.log)


async def soak(minutes: float, callers: int, edge: Edge) -> tuple[Soak, int]:
    """Run it; the soak and the server's exit code."""
    with tempfile.TemporaryDirectory() as name:
        run = Soak(Path(name), time.monotonic() + minutes * MINUTE, edge)
        ready = "all workers serve" if edge == "grpc" else "ready"
        async with running(settings=run.settings(), wait_for=ready) as server:
            if edge == "grpc":
                port = next(event["port"] for event in server.log if event["event"] == "port reserved")
            else:
                port = server.port
            run.target = f"localhost:{port}"
            reading = asyncio.create_task(server.read_on())
            async with asyncio.TaskGroup() as tasks:
                for seed in range(callers):
                    tasks.create_task(run.caller(seed))
                tasks.create_task(run.chaos(server))
                tasks.create_task(run.measure(server))
            reading.cancel()
            await asyncio.wait({reading})
            server.signal(signal.SIGTERM)
            return run, await server.exit_code()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--edge", choices=get_args(Edge), default="grpc")
    options = parser.parse_args()
    run, code = asyncio.run(soak(options.minutes, options.callers, options.edge))
    Console().print("\n".join(run.report(code)), soft_wrap=True, highlight=False)
    assert not run.wrong, "something came that should not have"
    assert not run.growth.leaks(), run.growth.leaks()
    assert code == 0, "the server did not end as it should"


if __name__ == "__main__":
    main()
