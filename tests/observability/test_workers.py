"""The metrics of several workers in one scrape, of which one may die at any moment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from prometheus_client.samples import Sample

from recommender.observability.workers import WorkerMetrics

TIMEOUT = 30.0
PAGE = b"HTTP/1.0 200 OK\r\n\r\n# TYPE one gauge\none 1.0\n# EOF\n"


def answering(listener: socket.socket, answer: bytes) -> Callable[[], None]:
    """Answer one request with these bytes, and close."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            connection.recv(4096)
            connection.sendall(answer)

    return serve


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n# TYPE one gauge",
        b"HTTP/1.0 200 OK\r\n\r\n# TYPE one gauge\none 1",
        b"HTTP/1.0 200 OK\r\n\r\n<html>",
        b"HTTP/1.0 200 OK\r\n\r\n\xff",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    ids=["no answer", "cut", "cut without a length", "another page", "no text", "no HTTP"],
)
def test_a_worker_that_does_not_give_its_metrics_is_down_and_takes_no_others_away(answer: bytes) -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as sound,
        closing(socket.create_server(("127.0.0.1", 0))) as broken,
    ):
        serving = [threading.Thread(target=answering(*each), daemon=True) for each in ((sound, PAGE), (broken, answer))]
        for each in serving:
            each.start()
        metrics = WorkerMetrics(lambda: {0: sound.getsockname()[1], 1: broken.getsockname()[1]}, dict)
        samples = [sample for family in metrics.collect() for sample in family.samples]
        for each in serving:
            each.join(TIMEOUT)

    assert [sample for sample in samples if sample.name == "one"] == [Sample("one", {"worker": "0"}, 1.0)]
    assert {sample.labels["worker"]: sample.value for sample in samples if sample.name == "recommender_worker_up"} == {
        "0": 1.0,
        "1": 0.0,
    }
