"""The endpoint for Prometheus: whoever asks gets the text format or OpenMetrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from recommender.errors import StartError


class Endpoint:
    """Serves `/metrics` at `host` and `port` (0 takes a free one) in a thread of its own, until `close`.

    Every scrape asks `collector`. Raises StartError if it cannot listen.
    """

    def __init__(self, collector: Collector, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on port {port} of {host}: {error.strerror}; stop what listens there, or set "
                "RECOMMENDER_METRICS_PORT to another one (0 takes a free one, empty serves none)"
            ) from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening, and wait for the thread; it answers at most one more scrape."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
