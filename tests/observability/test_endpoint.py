"""The port of the metrics: slow and silent callers are bounded, and do not keep a scrape out."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing

import pytest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recommender.observability.prometheus import Endpoint

TIMEOUT = 30.0
SLOW = 200
ROOM = 40
"""Number of new threads: one for each connection, and the endpoint's own."""


class One(Collector):
    """Collects one gauge."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("one", "A gauge.", value=1)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT) as answer:
        return str(answer.read().decode())


def connected(port: int, said: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    connection.sendall(said)
    return connection


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with closing(Endpoint(One(), "127.0.0.1", 0, patience=0.2)) as opened:
        yield opened


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nhost"], ids=["silent", "slow"])
def test_a_scrape_gets_through_among_slow_callers_who_take_few_threads(said: bytes) -> None:
    before = threading.active_count()
    with ExitStack() as connections, closing(Endpoint(One(), "127.0.0.1", 0)) as endpoint:
        for _ in range(SLOW):
            connections.enter_context(closing(connected(endpoint.port, said)))
        text = scrape(endpoint.port)
        threads = threading.active_count() - before

    assert "one 1.0" in text
    assert threads <= ROOM


def test_a_caller_who_says_nothing_is_closed(endpoint: Endpoint) -> None:
    with closing(connected(endpoint.port, b"GET /met")) as caller:
        assert caller.recv(1) == b""
    assert "one 1.0" in scrape(endpoint.port)


def test_a_caller_who_leaves_is_no_error(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(connected(endpoint.port, b"GET /metrics HTTP/1.1\r\n\r\n")):
        pass
    assert "one 1.0" in scrape(endpoint.port)
    assert "Traceback" not in capsys.readouterr().err
