"""Builds, starts and stops metrics and tracing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from recommender.edges.address import url_of
from recommender.edges.calls import Calls, CallSampler
from recommender.errors import SettingsError
from recommender.models.attributes import ItemAttributes
from recommender.models.availability import Availability
from recommender.models.follower import FollowerStatus
from recommender.models.version import Version
from recommender.observability.metrics import AskEdge, Metrics
from recommender.security.access import Access
from recommender.security.reloading import ReloadedFiles
from recommender.settings.engine import EngineSettings
from recommender.settings.operations import OperationSettings
from recommender.settings.otlp import Otlp

if TYPE_CHECKING:
    from recommender.observability.meters import MetricSender
    from recommender.observability.records import RecordSender
    from recommender.observability.tracing import BatchTracing, Tracing

log = structlog.get_logger(__name__)


class Sender(Protocol):
    """Sends one signal to a collector."""

    async def close(self) -> None:
        """Send what is left within two seconds, and stop."""


class Monitoring:
    """Metrics and tracing of one server: a Prometheus endpoint, and what `otlp` sends to a collector.

    The edge notes its calls in `rpcs`; an edge that makes their SERVER spans is `intercepted`. What is off is neither
    imported nor started. Raises SettingsError if the OpenTelemetry SDK refuses a variable.
    """

    def __init__(
        self, operations: OperationSettings, engine: EngineSettings, otlp: Otlp, *, intercepted: bool = False
    ) -> None:
        self.metrics_port = 0
        """Port of the endpoint once started; 0 without an endpoint."""
        self._wanted_port = operations.metrics_port
        self._ending = contextlib.AsyncExitStack()
        self._tracing: Tracing | None = None
        self._senders: list[Sender] = []
        self._metric_sender: MetricSender | None = None
        self._record_sender: RecordSender | None = None
        self._ended_at = 0.0
        """When `close` began to send what is left, on the monotonic clock."""
        if not (otlp.traces or otlp.metrics or otlp.logs):
            self.rpcs = Calls(exemplars=otlp.exemplars)
            self._metrics = Metrics(self.rpcs, engine)
            return
        try:
            self._send(engine, otlp, intercepted=intercepted)
        except SettingsError:
            raise
        except Exception as error:  # any error of a library about a value becomes one sentence for operators
            raise SettingsError(f"OpenTelemetry refuses a value of its OTEL_ variables: {error}") from error

    def _send(self, engine: EngineSettings, otlp: Otlp, *, intercepted: bool) -> None:
        from recommender.observability.delivery import Delivery, pass_on_warnings  # noqa: PLC0415 (slow to import)
        from recommender.observability.otlp import make_resource  # noqa: PLC0415 (slow to import)

        pass_on_warnings()
        delivery = Delivery()
        resource = make_resource(otlp.worker)
        if otlp.traces:
            from recommender.observability.otlp import SpanSender  # noqa: PLC0415 (slow to import)
            from recommender.observability.tracing import Tracing  # noqa: PLC0415 (slow to import)

            spans = SpanSender(otlp.traces, delivery)
            self._senders.append(spans)
            self._tracing = Tracing(spans.processor, resource, ratio=otlp.ratio, intercepted=intercepted)
        self.rpcs = Calls(self._tracing, otlp.exemplars)
        self._metrics = Metrics(self.rpcs, engine, keep=2 * otlp.interval)
        if otlp.metrics:
            from recommender.observability.meters import MetricSender  # noqa: PLC0415 (slow to import)

            self._metric_sender = MetricSender(self._metrics, resource, otlp.metrics, delivery, interval=otlp.interval)
            self._senders.append(self._metric_sender)
        if otlp.logs:
            from recommender.observability.records import RecordSender  # noqa: PLC0415 (slow to import)

            self._record_sender = RecordSender(resource, otlp.logs, delivery)

    async def start(self, host: str) -> None:
        """Open the endpoint at `host` and send metrics from now on. Raises StartError if it cannot listen."""
        if self._wanted_port is not None:
            from recommender.observability.prometheus import Endpoint, Readings  # noqa: PLC0415 (slow to import)

            endpoint = Endpoint(Readings(self._metrics.read), host, self._wanted_port)
            self._ending.push_async_callback(asyncio.to_thread, endpoint.close)
            self.metrics_port = endpoint.port
            log.info("metrics", address=url_of(host, endpoint.port, "/metrics"))
        if self._metric_sender is not None:
            self._run(self._metric_sender.run())
        if self._wanted_port is not None or self._metric_sender is not None:
            self._run(self._metrics.watch_loop())

    @property
    def sampler(self) -> CallSampler | None:
        """Samples calls for an edge that makes their spans; None if nothing is traced."""
        return None if self._tracing is None else self._tracing.sampling

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Context to begin listening in: gRPC gives its calls the context that its server was started in.

        Traced calls are then in no span of the start, and get no second one of what `opentelemetry-instrument` wraps
        gRPC's servers in.
        """
        if self._tracing is None:
            yield
            return
        from opentelemetry.context import Context, attach, detach  # noqa: PLC0415 (it is imported)

        token = attach(Context())
        try:
            with self._one_span_a_call():
                yield
        finally:
            detach(token)

    @staticmethod
    def _one_span_a_call() -> AbstractContextManager[object]:
        if "opentelemetry.instrumentation.utils" not in sys.modules:
            return contextlib.nullcontext()
        from opentelemetry.instrumentation.utils import suppress_instrumentation  # noqa: PLC0415 (it is imported)

        return suppress_instrumentation()

    def tracer(self, name: str, version: str) -> BatchTracing | None:
        """Tracer of that model's batches; None if nothing is traced."""
        return None if self._tracing is None else self._tracing.of_model(name, version)

    def watch(self, version: Version) -> None:
        """Report this version too."""
        self._metrics.add(version)

    def forget(self, version: Version) -> None:
        """Report the last counts of this version, and no longer its state."""
        self._metrics.remove(version)

    def watch_access(self, access: Access) -> None:
        """Report the use of tokens too."""
        self._metrics.add_access(access)

    def watch_files(self, files: Sequence[ReloadedFiles[Any]]) -> None:
        """Report the state of reloaded files too."""
        self._metrics.add_files(files)

    def watch_attributes(self, attributes: ItemAttributes) -> None:
        """Report the table of items too."""
        self._metrics.add_attributes(attributes)

    def watch_availability(self, availability: Availability) -> None:
        """Report how many items are hidden too."""
        self._metrics.add_availability(availability)

    def watch_edge(self, ask: AskEdge) -> None:
        """Report the edge's connections too, if it counts them."""
        self._metrics.add_edge(ask)

    def watch_followers(self, statuses: Callable[[], Iterable[FollowerStatus]]) -> None:
        """Report how the sources of models are followed too."""
        self._metrics.add_followers(statuses)

    async def close(self) -> None:
        """Send what is left and stop everything but the log's records; a second call is a no-op."""
        await self._ending.aclose()
        self._ended_at = self._ended_at or time.monotonic()
        senders, self._senders = self._senders, []
        # Side by side: a dead collector must not hold the others up.
        await asyncio.gather(*(sender.close() for sender in senders))

    async def end_log(self) -> None:
        """Send what is left of the log, after `close` and within its two seconds; a second call is a no-op."""
        sender, self._record_sender = self._record_sender, None
        if sender is not None:
            await sender.close(time.monotonic() - self._ended_at)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._ending.push_async_callback(end)
