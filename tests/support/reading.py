"""Do what a page says: its blocks one after the other, in one folder, with its servers on free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.documents import Block, blocks
from tests.support.paths import ROOT

PATIENCE = 240.0
_PORT, _METRICS_PORT, _HEALTH_PORT = "50051", "9464", "50052"
"""The ports that pages name; free ports replace them here."""
_READY = ("ready", "all workers serve")
_SHELL = """\
recommender() {
    if [ "$1" = client ]; then set -- client --port "$PAGE_PORT" "${@:2}"; fi
    command recommender "$@"
}
"""
"""`recommender client` asks at 50051: here it asks where the page's server is."""


class Server:
    """A server that a block starts: a process group, and the ports in its log."""

    def __init__(self, text: str, folder: Path, environment: Mapping[str, str]) -> None:
        for port in (_METRICS_PORT, _HEALTH_PORT):
            text = re.sub(rf"_PORT={port}\b", "_PORT=0", text)
        self.ports: dict[str, str] = {}
        self.log = ""
        self._ready = threading.Event()
        self._process = subprocess.Popen(
            ["bash", "-euc", text],
            cwd=folder, env={**environment, "RECOMMENDER_PORT": "0"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._ready.wait(PATIENCE) or self._process.poll() is not None:
            self.close()
            raise AssertionError(f"{text} did not get ready: {self.log}")

    def close(self) -> None:
        """Stop it and read its log to the end."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._note(line)
        self._ready.set()

    def _note(self, line: str) -> None:
        self.log += line
        event: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "metrics" and "worker" in event:
            return  # a worker's own endpoint, which its supervisor reads
        if event.get("event") in ("listening", "metrics"):
            port = re.findall(r":(\d+)(?:/|$)", event["address"])[-1]
            self.ports[_PORT if event["event"] == "listening" else _METRICS_PORT] = port
        elif event.get("event") == "port reserved":
            self.ports[_PORT] = str(event["port"])
        elif event.get("event") in _READY:
            self._ready.set()


@contextmanager
def serving(text: str, folder: Path) -> Iterator[Server]:
    """The server that a block starts, until the end of the context."""
    server = Server(text, folder, environment())
    try:
        yield server
    finally:
        server.close()


def environment() -> dict[str, str]:
    """A shell in which the project is installed and nothing is set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RECOMMENDER_", "OTEL_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", "COLUMNS": "100"}


def checkout(folder: Path) -> None:
    """Make `folder` look like a checkout, in which new files do no harm."""
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)


def follow(page: Path, folder: Path, plain: Server | None = None) -> dict[Block, str]:
    """Run the blocks of a page that are marked `run`, and save those with a `file:`; what each wrote.

    `plain` is a running `recommender serve` without settings, for pages that start just that, or nothing.
    """
    wrote = {}
    with ExitStack() as servers:
        server = plain
        for block in blocks(page):
            for word in block.words:
                if word.startswith("file:"):
                    (folder / word.removeprefix("file:")).write_text(block.text, encoding="utf-8")
            if "run" not in block.words:
                continue
            if not block.serves:
                wrote[block] = _run(block, folder, {} if server is None else server.ports)
            elif plain is not None and block.text.strip() == "recommender serve":
                server = plain
            else:
                servers.close()
                server = servers.enter_context(serving(block.text, folder))
    return wrote


def _run(block: Block, folder: Path, ports: Mapping[str, str]) -> str:
    text = block.text
    for named, port in ports.items():
        text = re.sub(rf"\b{named}\b", port, text)
    if block.language == "python":
        (folder / "snippet.py").write_text(text, encoding="utf-8")
        command = [sys.executable, "snippet.py"]
    else:
        command = ["bash", "-euo", "pipefail", "-c", _SHELL + text]
    done = subprocess.run(
        command, cwd=folder, env={**environment(), "PAGE_PORT": ports.get(_PORT, "")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}: {block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout
