"""An OpenTelemetry collector for tests: keeps what it receives, and can refuse or delay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE = 60.0


class Collector:
    """What was sent so far. `refusal` is the status that it answers with instead, `gate` holds every answer back."""

    def __init__(self) -> None:
        self.port = 0
        self.refusal: grpc.StatusCode | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.attempts = 0
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.records: list[LogRecord] = []
        self.metadata: list[dict[str, str]] = []
        """Of each call of the three services."""
        self.resource: dict[str, object] = {}
        self._changed = threading.Condition()

    def take(
        self,
        context: Any,
        spans: list[Span],
        metrics: list[Metric],
        resource: Any,
        records: list[LogRecord] | None = None,
    ) -> None:
        with self._changed:
            self.attempts += 1
            self.metadata.append(dict(context.invocation_metadata()))
            self._changed.notify_all()
        self.gate.wait(PATIENCE)
        if self.refusal is not None:
            context.abort(self.refusal, "not now")
        with self._changed:
            self.spans += spans
            self.records += records or []
            self.metrics |= {metric.name: metric for metric in metrics}
            self.resource = attributes(resource.attributes)
            self._changed.notify_all()

    def until(self, holds: Any) -> None:
        """Wait until `holds()` does."""
        with self._changed:
            assert self._changed.wait_for(holds, PATIENCE), (self.spans, self.metrics)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC names methods so)
        for each in request.resource_spans:
            spans = [span for scope in each.scope_spans for span in scope.spans]
            self._collector.take(context, spans, [], each.resource)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for each in request.resource_metrics:
            metrics = [metric for scope in each.scope_metrics for metric in scope.metrics]
            self._collector.take(context, [], metrics, each.resource)
        return metrics_service_pb2.ExportMetricsServiceResponse()


class _Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for each in request.resource_logs:
            records = [record for scope in each.scope_logs for record in scope.log_records]
            self._collector.take(context, [], [], each.resource, records)
        return logs_service_pb2.ExportLogsServiceResponse()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(8))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(collector), server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(collector), server)  # type: ignore[no-untyped-call]
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_Logs(collector), server)  # type: ignore[no-untyped-call]
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        collector.gate.set()
        server.stop(None).wait()


def attributes(pairs: Any) -> dict[str, object]:
    """Attributes as a plain dict."""
    return {pair.key: value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def value(any_value: AnyValue) -> object:
    kind = any_value.WhichOneof("value")
    return None if kind is None else getattr(any_value, kind)
