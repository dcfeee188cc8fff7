"""A registry that answers byte by byte, or without end, costs a process that is killed, and no thread or memory."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest

from recommender.engine.machine import resident_memory
from recommender.errors import SourceError, SourceTimeoutError
from recommender.models.sources.remote import RemoteRegistry

_KNOWN = {"name": "shop", "version": "7", "source": "mlflow-artifacts:/1", "run_id": "r", "creation_timestamp": 1}
_MOST_GROWTH = 64 << 20


@dataclass
class BadRegistry:
    """Speaks as MLflow does, in its manner of the moment."""

    manner: Literal["good", "drips", "endless"] = "good"
    uri: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def open(self) -> Iterator[BadRegistry]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.end_headers()
                with contextlib.suppress(OSError):
                    if registry.manner == "good":
                        self.wfile.write(json.dumps({"model_version": _KNOWN}).encode())
                    while registry.manner == "drips" and not registry.released.wait(0.1):
                        self.wfile.write(b" ")
                    while registry.manner == "endless" and not registry.released.is_set():
                        self.wfile.write(bytes(1 << 20))

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


@pytest.fixture
def bad() -> Iterator[BadRegistry]:
    with BadRegistry().open() as opened:
        yield opened


@pytest.mark.slow  # it imports MLflow in several processes
def test_a_registry_that_drips_or_never_ends_is_left_and_asked_again(bad: BadRegistry) -> None:
    threads = threading.active_count()
    with closing(RemoteRegistry(bad.uri, patience=2.0, longest=60.0)) as registry:
        assert registry.by_alias("shop", "champion").version == "7"
        bad.manner = "drips"
        with pytest.raises(SourceTimeoutError, match="did not answer within 2 s"):
            registry.by_alias("shop", "champion")
        bad.manner = "good"
        assert registry.version("shop", "7").label == "shop@7"
        bad.manner = "endless"
        before = resident_memory()
        with pytest.raises(SourceError):
            registry.by_alias("shop", "champion")
        after = resident_memory()

    assert before is None or after is None or after - before < _MOST_GROWTH
    assert threading.active_count() <= threads + 2, "those of the bad registry"
    with pytest.raises(SourceError, match="asked no longer"):
        registry.version("shop", "7")
