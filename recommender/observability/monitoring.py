"""Builds, starts and stops metrics and tracing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from recommender.edges.calls import Calls
from recommender.models.follower import FollowerStatus
from recommender.models.version import Version
from recommender.observability.metrics import AskEdge, Metrics
from recommender.security.access import Access
from recommender.security.reloading import ReloadedFiles
from recommender.settings.engine import EngineSettings
from recommender.settings.operations import OperationSettings
from recommender.settings.otlp import Otlp

if TYPE_CHECKING:
    from recommender.observability.tracing import BatchTracing, Tracing

log = structlog.get_logger(__name__)


class Monitoring:
    """Metrics and tracing of one server: a Prometheus endpoint, and what `otlp` sends to a collector.

    The edge notes its calls in `rpcs`. What is off is neither imported nor started.
    """

    def __init__(self, operations: OperationSettings, engine: EngineSettings, otlp: Otlp) -> None:
        self.metrics_port = 0
        """Port of the endpoint once started; 0 if there is none."""
        self._wanted_port = operations.metrics_port
        self._interval = otlp.interval if otlp.metrics else None
        self._ending = contextlib.AsyncExitStack()
        self._tracing: Tracing | None = None
        if otlp.traces or otlp.metrics:
            from recommender.observability.otlp import (  # noqa: PLC0415 (the SDK is slow to import)
                Delivery,
                make_resource,
                pass_on_warnings,
            )

            pass_on_warnings()
            self._delivery = Delivery()
            self._resource = make_resource()
        if otlp.traces:
            from recommender.observability.otlp import SpanSender  # noqa: PLC0415 (the SDK is slow to import)
            from recommender.observability.tracing import Tracing  # noqa: PLC0415 (the SDK is slow to import)

            sender = SpanSender(self._delivery)
            self._ending.push_async_callback(sender.close)
            self._tracing = Tracing(sender.processor, self._resource, ratio=otlp.ratio)
        self.rpcs = Calls(self._tracing)
        self._metrics = Metrics(self.rpcs, engine)

    async def start(self, host: str) -> None:
        """Open the endpoint at `host` and send metrics from now on. Raises StartError if it cannot listen."""
        if self._wanted_port is not None:
            from recommender.observability.prometheus import Endpoint, Readings  # noqa: PLC0415 (slow to import)

            endpoint = Endpoint(Readings(self._metrics.read), host, self._wanted_port)
            self._ending.push_async_callback(asyncio.to_thread, endpoint.close)
            self.metrics_port = endpoint.port
            log.info("metrics", address=f"http://{host}:{endpoint.port}/metrics")
        if self._interval is not None:
            from recommender.observability.otlp import MetricSender  # noqa: PLC0415 (the SDK is slow to import)

            sender = MetricSender(self._metrics, self._resource, self._delivery, interval=self._interval)
            self._ending.push_async_callback(sender.close)
            self._run(sender.run())
        if self._wanted_port is not None or self._interval is not None:
            self._run(self._metrics.watch_loop())

    def tracer(self, name: str, version: str) -> BatchTracing | None:
        """Tracer of that model's batches; None if nothing is traced."""
        return None if self._tracing is None else self._tracing.of_model(name, version)

    def watch(self, version: Version) -> None:
        """Report this version too."""
        self._metrics.add(version)

    def forget(self, version: Version) -> None:
        """Report this version no longer."""
        self._metrics.remove(version)

    def watch_access(self, access: Access) -> None:
        """Report the use of tokens too."""
        self._metrics.add_access(access)

    def watch_files(self, files: Sequence[ReloadedFiles[Any]]) -> None:
        """Report the state of reloaded files too."""
        self._metrics.add_files(files)

    def watch_edge(self, ask: AskEdge) -> None:
        """Report the edge's connections too, if it counts them."""
        self._metrics.add_edge(ask)

    def watch_followers(self, statuses: Callable[[], Iterable[FollowerStatus]]) -> None:
        """Report how the sources of models are followed too."""
        self._metrics.add_followers(statuses)

    async def close(self) -> None:
        """Send what is left and stop everything; a second call is a no-op."""
        await self._ending.aclose()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._ending.push_async_callback(end)
