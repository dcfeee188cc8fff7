"""The collector of `collector.py` over HTTP, and what it saw of each request."""

from __future__ import annotations

import gzip
import ssl
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_KINDS: dict[str, Any] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}


class HttpCollector:
    """Requests so far: path, headers in lower case, and message of each."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    def of(self, signal: str) -> list[Any]:
        """The messages of a signal."""
        return [message for path, _, message in self.requests if path.endswith(f"/v1/{signal}")]

    def headers(self, signal: str) -> list[dict[str, str]]:
        """The headers of each request of a signal."""
        return [headers for path, headers, _ in self.requests if path.endswith(f"/v1/{signal}")]


@contextmanager
def collecting_http(tls: ssl.SSLContext | None = None) -> Iterator[HttpCollector]:
    """A collector on a free port."""
    collector = HttpCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            encoding = self.headers.get("content-encoding", "")
            if encoding:
                body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
            message = _KINDS[self.path.rpartition("/")[2]].FromString(body)
            headers = {key.lower(): text for key, text in self.headers.items()}
            collector.requests.append((self.path, headers, message))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    collector.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
