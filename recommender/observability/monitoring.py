"""Who looks at a server from outside: builds what counts and what tells, starts it, ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import structlog

from recommender.batching.statistics import Statistics
from recommender.edges.calls import Calls
from recommender.models.version import FollowerStatus
from recommender.observability.metrics import AskEdge, MeteredModel, Metrics
from recommender.security.access import Access

if TYPE_CHECKING:
    from recommender.observability.tracing import BatchTracing, Tracing

log = structlog.get_logger(__name__)


class Monitoring:
    """What a server is watched by.

    `metrics_port` is the Prometheus endpoint's: 0 takes a free one, None is none. `traces` and `metrics` say whether
    these go to an OpenTelemetry collector: metrics every `interval` seconds, traces of `ratio` of those calls that come
    without one of their caller's. The edge notes its calls in `rpcs`; where nobody looks, nothing is started.
    """

    def __init__(
        self,
        *,
        metrics_port: int | None = None,
        traces: bool = False,
        metrics: bool = False,
        interval: float = 60.0,
        ratio: float = 1.0,
    ) -> None:
        self.metrics_port = 0
        """Where the endpoint listens, once started."""
        self._wanted_port = metrics_port
        self._interval = interval if metrics else None
        self._ending = contextlib.AsyncExitStack()
        self._tracing: Tracing | None = None
        if traces or metrics:
            from recommender.observability import otlp  # noqa: PLC0415 (only who sends pays)

            otlp.pass_on_warnings()
            self._delivery = otlp.Delivery()
            self._resource = otlp.make_resource()
        if traces:
            from recommender.observability.otlp import SpanSender  # noqa: PLC0415
            from recommender.observability.tracing import Tracing  # noqa: PLC0415

            sender = SpanSender(self._delivery)
            self._ending.push_async_callback(sender.close)
            self._tracing = Tracing(sender.processor, self._resource, ratio=ratio)
        self.rpcs = Calls(self._tracing)
        self._metrics = Metrics(self.rpcs)

    async def start(self, host: str) -> None:
        """Let everybody look from now on. Raises StartError if the endpoint cannot listen at `host`."""
        if self._wanted_port is not None:
            from recommender.observability.endpoint import Endpoint  # noqa: PLC0415 (only who is scraped pays)
            from recommender.observability.prometheus import Readings  # noqa: PLC0415

            endpoint = Endpoint(Readings(self._metrics), host, self._wanted_port)
            self._ending.push_async_callback(asyncio.to_thread, endpoint.close)
            self.metrics_port = endpoint.port
            log.info("metrics", address=f"http://{host}:{endpoint.port}/metrics")
        if self._interval is not None:
            from recommender.observability.otlp import MetricSender  # noqa: PLC0415

            sender = MetricSender(self._metrics, self._resource, self._delivery, interval=self._interval)
            self._ending.push_async_callback(sender.close)
            self._run(sender.run())
        if self._wanted_port is not None or self._interval is not None:
            self._run(self._metrics.watch_loop())

    def tracer(self, name: str, version: str) -> BatchTracing | None:
        """Who follows callers through the batches of that model; None if nothing is traced."""
        return None if self._tracing is None else self._tracing.of_model(name, version)

    def watch(self, source: MeteredModel) -> None:
        """Tell of this model too."""
        self._metrics.add(source)

    def watch_access(self, access: Access) -> None:
        """Tell of the use of tokens too."""
        self._metrics.add_access(access)

    def watch_edge(self, ask: AskEdge) -> None:
        """Tell of the edge's connections too, where it knows of them."""
        self._metrics.add_edge(ask)

    def forget(self, statistics: Callable[[], Statistics]) -> None:
        """Tell no longer of the model with these statistics."""
        self._metrics.remove(statistics)

    def follow(self, followings: Callable[[], Iterable[FollowerStatus]]) -> None:
        """Tell how the sources of models are followed."""
        self._metrics.follow(followings)

    async def close(self) -> None:
        """End all that was started, and send what is left; a second time changes nothing."""
        await self._ending.aclose()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        self._ending.push_async_callback(end)
