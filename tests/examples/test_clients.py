"""The clients of examples/clients get the reference model's known answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recommender.settings.settings import Settings
from tests.support.facts import FACTS
from tests.support.paths import ROOT, WEIGHTS
from tests.support.serving import AnyServer, Shared, in_a_thread, server_of

pytestmark = pytest.mark.peers

EXAMPLES = ROOT / "examples/clients"
FIRST = FACTS[1, 2, 3, 4][:5]
GO = ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
SMOKE = pytest.mark.slow
"""Needs nothing but Python: run by `just test-slow` too, and so by CI."""


@pytest.fixture
def target(shared: Shared) -> str:
    return f"127.0.0.1:{shared().port}"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' '.join(missing)}")


def told(*command: str | Path, cwd: Path | None = None, **environment: str) -> list[str]:
    """The lines that a program writes; raises AssertionError unless it ends well."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def words(items: Sequence[int]) -> str:
    return " ".join(map(str, items))


@SMOKE
def test_one_history_in_python(target: str) -> None:
    *items, model = told(sys.executable, EXAMPLES / "python/one.py", target)

    assert [int(line.split()[0]) for line in items] == FIRST
    assert model == "by reference@1"


@SMOKE
def test_many_histories_at_once_in_python(target: str) -> None:
    lines = told(sys.executable, EXAMPLES / "python/many.py", target)

    assert lines[0] == f"user 0: {FACTS[0,][0]}"
    assert all(re.fullmatch(r"user \d+: \d+", line) for line in lines)
    assert len(lines) == 100


@SMOKE
def test_a_stream_in_python(target: str) -> None:
    lines = told(sys.executable, EXAMPLES / "python/stream.py", target)

    assert len(lines) == 100
    assert f"request 0: {FACTS[0,][0]}" in lines
    assert [line for line in lines if "INVALID_ARGUMENT" in line] == [
        "request 1: INVALID_ARGUMENT: request.item_ids[0]: must be greater than or equal to 0, not -1"
    ]


@SMOKE
def test_the_notebook(target: str) -> None:
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")

    lines = told(sys.executable, "-c", script, TARGET=target)

    assert lines[0].startswith("reference@1: 10000 items, ")
    assert [int(line.split()[0]) for line in lines[1:6]] == FIRST
    assert lines[6] == "1000 answers, 0 refused"


@needs("npm", "node")
def test_node(target: str, tmp_path: Path) -> None:
    # Where it reads the descriptors from is relative to its own file.
    folder = tmp_path / "examples/clients/node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "recommender").symlink_to(ROOT / "recommender")
    told("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=folder)

    one, *others = told("node", "client.js", target, cwd=folder)

    assert one == f"one: {words(FIRST)} by reference@1"
    assert others[:3] == [
        f"batch: {words(FACTS[0,][:3])}",
        f"batch: {words(FACTS[9999, 999, 99][:3])}",
        "batch: INVALID_ARGUMENT: item_ids[0]: must be greater than or equal to 0, not -1",
    ]
    assert sorted(others[3:]) == [
        f"stream 0: {words(FACTS[0,][:3])}",
        f"stream 1: {words(FACTS[9999, 999, 99][:3])}",
        "stream 2: INVALID_ARGUMENT: request.item_ids[0]: must be greater than or equal to 0, not -1",
    ]


@needs(*GO)
def test_go(target: str) -> None:
    one, *others = told("bash", EXAMPLES / "go/run.sh", target)

    assert one == f"one: [{words(FIRST)}] by reference@1"
    assert sorted(others) == [
        f"stream 0: [{words(FACTS[0,][:3])}]",
        f"stream 1: [{words(FACTS[9999, 999, 99][:3])}]",
        "stream 2: InvalidArgument: request.item_ids[0]: must be greater than or equal to 0, not -1",
    ]


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The address of the browser's page, served as `python -m http.server` would."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(EXAMPLES / "browser"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def web(page: str) -> Iterator[AnyServer]:
    """A server that takes calls in JSON, also those of the page."""
    settings = Settings(port=0, weights_dir=WEIGHTS, edge="envoy", web=True, cors_origins=page)
    with in_a_thread(lambda: server_of(settings)) as server:
        yield server


@needs("curl")
def test_curl(web: AnyServer) -> None:
    one, many, model = told("bash", EXAMPLES / "curl/recommend.sh", f"127.0.0.1:{web.port}")

    assert json.loads(one)["itemIds"] == FIRST
    answered, refused = json.loads(many)["results"]
    assert answered["response"]["itemIds"] == FACTS[0,][:3]
    assert refused["error"]["code"] == 3
    assert json.loads(model)["model"]["name"] == "reference"


@needs("chromium")
def test_a_browser(web: AnyServer, page: str, tmp_path: Path) -> None:
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=10000")
    address = f"{page}/shop.html?server=http://127.0.0.1:{web.port}"

    shown = "".join(told("chromium", *options, f"--user-data-dir={tmp_path}", "--dump-dom", address))

    assert [int(item) for item in re.findall(r"<li>item (\d+), score [\d.]+</li>", shown)] == FIRST
    assert "by reference@1" in shown
