"""The endpoint that Prometheus scrapes, in its text format or as OpenMetrics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from recommender.edges.address import listening_host
from recommender.errors import StartError
from recommender.histogram import CallExemplar
from recommender.observability.instruments import DataPoint, Distribution, Instrument, Reading

_READ_SECONDS = 5.0
"""How long a scrape waits for the event loop. Later than that the scrape fails: the lag is the news."""
_MOST_CONNECTIONS = 32
_CONNECTION_SECONDS = 10.0
_QUEUED = 128
"""Connections that the system may hold until they are accepted."""


class Endpoint:
    """Serves `/metrics` at `host` and `port` (0 takes a free one) in a separate thread, until `close`.

    Each scrape reads `collector` and has `patience` seconds. Raises StartError if it cannot listen.
    """

    def __init__(self, collector: Collector, host: str, port: int, *, patience: float = _CONNECTION_SECONDS) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            self._server = _Server(host, port, patience)
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on port {port} of {host}: {error.strerror}; stop what listens there, or set "
                "RECOMMENDER_METRICS_PORT to another one (0 takes a free one, empty serves none)"
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening and wait for the thread, which answers at most one more scrape."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, a bounded number of them.

    One connection too many closes the oldest that has not asked yet, so slow callers do not keep a scrape out.
    """

    daemon_threads = True
    request_queue_size = _QUEUED

    def __init__(self, host: str, port: int, patience: float) -> None:
        self._patience = patience
        self._changing = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        """Open connections, oldest first."""
        self._asking: set[socket.socket] = set()
        """Connections that have not sent a request yet."""
        family, _, _, _, address = socket.getaddrinfo(
            listening_host(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of a name, which waits for DNS; `::` takes IPv4 too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def asked(self, connection: socket.socket) -> None:
        """Note that the request of a connection was read."""
        with self._changing:
            self._asking.discard(connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ANN401, ARG002 (as the base class)
        """Take a connection up; False if there is no room for it."""
        with self._changing:
            if len(self._since) >= _MOST_CONNECTIONS:
                oldest = next((each for each in self._since if each in self._asking), None)
                if oldest is None:
                    return False
                self._end(oldest)
            self._since[request] = time.monotonic()
            self._asking.add(request)
        return True

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 (as the base class)
        """Close a connection."""
        with self._changing:
            self._forget(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that take too long; the base class calls it every half second."""
        too_old = time.monotonic() - self._patience
        with self._changing:
            for connection in [each for each, since in self._since.items() if since < too_old]:
                self._end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (as the base class)
        """Ignore the error of a caller that has disconnected; the application reports a failed scrape."""

    def _end(self, connection: socket.socket) -> None:
        """Make the thread of a connection end."""
        self._forget(connection)
        with contextlib.suppress(OSError):  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: socket.socket) -> None:
        self._since.pop(connection, None)
        self._asking.discard(connection)


class _Handler(WSGIRequestHandler):
    server: _Server

    def parse_request(self) -> bool:
        """Read the rest of a request; returns False, and answers the caller, if it is malformed."""
        parsed = super().parse_request()
        self.server.asked(self.connection)
        return parsed

    def log_message(self, *_: object) -> None:
        """Log nothing of a scrape."""


class Readings(Collector):
    """Collects what `read` returns, called on the event loop that this is made on, from any thread."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, Reading]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        """Collect one reading; raises TimeoutError if the event loop is too late for it."""
        return families(asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(_READ_SECONDS))

    def describe(self) -> Iterable[Metric]:
        """No families: else the registry would take a reading to learn the names, on the loop it is called from."""
        return ()


def families(reading: Reading) -> Iterable[Metric]:
    """Convert a reading to families of Prometheus."""
    for instrument, points in reading:
        named = (instrument.prometheus_name, f"{instrument.meaning}.")
        labels = [attribute.replace(".", "_") for attribute in instrument.attributes]
        if instrument.kind == "histogram":
            yield _histogram(HistogramMetricFamily(*named, labels=labels), instrument, points)
            continue
        family = (CounterMetricFamily if instrument.kind == "counter" else GaugeMetricFamily)(*named, labels=labels)
        for point in points:
            if not isinstance(point.value, Distribution):
                family.add_metric(point.attributes, point.value)
        yield family


def _histogram(
    family: HistogramMetricFamily, instrument: Instrument, points: Iterable[DataPoint]
) -> HistogramMetricFamily:
    ends = (*(str(float(bound)) for bound in instrument.bounds), "+Inf")
    for point in points:
        if isinstance(point.value, Distribution):
            exemplars = point.value.exemplars
            counts = enumerate(zip(ends, itertools.accumulate(point.value.counts), strict=True))
            buckets = [(*each, _exemplar(exemplars[place])) if place in exemplars else each for place, each in counts]
            family.add_metric(point.attributes, buckets, point.value.total)
    return family


def _exemplar(call: CallExemplar) -> Exemplar:
    ids = {"trace_id": call.trace_id, "span_id": call.span_id} if call.trace_id else {}
    return Exemplar(ids, call.seconds, call.at)
