"""A real MLflow server, and a way to it that can be broken: what a network and a failing registry do."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from recommender.models.card import CARD_NAME, Card
from recommender.models.sources.mlflow import Registered, Registry
from tests.support.versions import write_version

PATIENCE = 300.0
_new_tables: list[bytes] = []
"""The database of an empty server: MLflow takes seconds to create its tables."""


@contextlib.contextmanager
def running_mlflow(folder: Path, *artifacts: str, **environment: str) -> Iterator[str]:
    """`mlflow server` with sqlite and local artifacts, unless the options say otherwise, on a free port; its URI."""
    port = _free_port()
    tables = folder / "mlflow.db"
    if _new_tables:
        tables.write_bytes(_new_tables[0])
    options = artifacts or ("--artifacts-destination", str(folder / "artifacts"))
    command = ("mlflow", "server", "--backend-store-uri", f"sqlite:///{tables}", *options, "--workers", "1")
    known = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _running(
        folder / "mlflow.log", *command, "--host", "127.0.0.1", "--port", str(port), **{**known, **environment}
    ):
        _wait_for(f"http://127.0.0.1:{port}/health", folder / "mlflow.log")
        if not _new_tables:
            _new_tables.append(tables.read_bytes())
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def running_s3(folder: Path) -> Iterator[str]:
    """What speaks as S3 does, on a free port; its URI."""
    port = _free_port()
    with _running(folder / "s3.log", "moto.server", "-H", "127.0.0.1", "-p", str(port)):
        _wait_for(f"http://127.0.0.1:{port}/moto-api/", folder / "s3.log")
        yield f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _running(log: Path, *module: str, **environment: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=log.parent,
            env={**os.environ, **environment},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _healthy(url):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _healthy(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (of our own)
        return bool(answer.status == http.HTTPStatus.OK)
    return False


Mode = Literal["pass", "fail", "hang", "truncate", "trickle"]


@dataclass
class Way:
    """A proxy before a server. `truncate` and `trickle` concern the bytes of model files only."""

    target: str
    mode: Mode = "pass"
    uri: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def breaks(self, mode: Mode) -> None:
        """Apply this to every later request."""
        self.mode = mode

    @contextlib.contextmanager
    def open(self) -> Iterator[Way]:
        way = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def handle_any(self) -> None:
                if way.mode == "hang":
                    way.released.wait()
                    return
                if way.mode == "fail":
                    self.send_error(500)
                    return
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                upstream = http.client.HTTPConnection(way.target.removeprefix("http://"), timeout=60)
                with contextlib.closing(upstream):
                    upstream.request(self.command, self.path, body, headers)
                    answer = upstream.getresponse()
                    content = answer.read()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                        self.send_header(key, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self._send(content)

            def _send(self, content: bytes) -> None:
                of_a_model = self.path.split("?")[0].endswith(".onnx") and self.command == "GET"
                if of_a_model and way.mode == "truncate":
                    self.wfile.write(content[: len(content) // 2])
                elif of_a_model and way.mode == "trickle":
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    way.released.wait()
                else:
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 (as the library calls them)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.uri = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self.released.set()
            server.shutdown()
            server.server_close()
            thread.join()


def push(uri: str, name: str, version: int, folder: Path, **changes: object) -> Registered:
    """Publish a test's version, good or not: unlike the command this tries nothing first."""

    def describe(path: Path, run_id: str) -> None:
        path.write_text(f"run_id: {run_id}\n")

    made = write_version(folder / f"{name}-{version}", version, **changes)  # type: ignore[arg-type]
    card = Card.model_validate_json((made / CARD_NAME).read_bytes())
    return Registry(uri).push(
        name,
        [*(made / file.path for file in card.files), made / CARD_NAME],
        card,
        write_description=describe,
        metrics={},
        tags={},
        description="",
        progress=lambda _done, _total: None,
    )


async def promote(uri: str, name: str, version: str) -> None:
    """Make a registered version the champion."""
    await asyncio.to_thread(Registry(uri).promote, name, version, "champion")
