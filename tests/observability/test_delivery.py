"""What the log says of a collector that does not take what is sent."""

from __future__ import annotations

import pytest
import structlog
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

from recommender.observability.delivery import Attempts, Delivery, NotedRecords, take_reasons


def test_a_time_out_that_leaves_no_time_for_a_second_attempt_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    exporter = OTLPLogExporter(timeout=0.1)
    take_reasons(exporter)
    with structlog.testing.capture_logs() as logged:
        NotedRecords(exporter, Attempts("logs", "http/protobuf", Delivery())).export([])

    (warning,) = logged
    assert "timeout" in warning["reason"]
