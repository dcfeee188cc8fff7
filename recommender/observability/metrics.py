"""Reads what was counted as metrics: one consistent reading of everything, whenever somebody asks.

The hot path counts in plain integers of its own; a reading turns them into points, so that a scrape or a push costs
and a call does not. Readings are taken on the event loop, where the counts do not change meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import psutil
from google.rpc import code_pb2

from recommender.batching.statistics import Statistics
from recommender.edges.calls import Calls
from recommender.edges.listener import Connections
from recommender.histogram import Durations, bucket
from recommender.models.version import FollowerStatus
from recommender.observability import instruments as telemetry
from recommender.observability.instruments import Instrument
from recommender.security.access import Access

_LAG_INTERVAL = 0.1
_EDGE_SECONDS = 1.0
"""How long a reading waits for what the edge knows; without it the reading has all the rest."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram so far: how many fell into each bucket, the last without a bound, and their sum."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Point:
    """One series of an instrument: a value for each of its attributes, in their order, and what it stands at."""

    attributes: tuple[str, ...]
    value: float | Distribution


Reading: TypeAlias = list[tuple[Instrument, list[Point]]]
"""Every instrument with its points; one without points has nothing to say yet."""


@dataclass(frozen=True, slots=True)
class MeteredModel:
    """What a served model is read from."""

    name: str
    version: str
    sha256: str
    execution_provider: str
    max_backlog: int
    slots: int
    statistics: Callable[[], Statistics]
    fallbacks: Callable[[], int]


AskEdge: TypeAlias = Callable[[], Awaitable[Connections | None]]
"""Asks an edge; None where it does not know. Raises OSError if it does not answer."""


class Metrics:
    """What there is to read: the calls, the event loop, the process, and every model that was added."""

    def __init__(self, rpcs: Calls) -> None:
        self._rpcs = rpcs
        self._followings: Callable[[], Iterable[FollowerStatus]] = tuple
        self._access: Access | None = None
        self._ask_edge: AskEdge | None = None
        self._sources: list[MeteredModel] = []
        self._lag = Durations()
        self._process = psutil.Process()
        self._started = time.monotonic()

    def add(self, source: MeteredModel) -> None:
        """Read this model too, and no longer another that is called the same: a series may come but once."""
        self._sources = [each for each in self._sources if (each.name, each.version) != (source.name, source.version)]
        self._sources.append(source)

    def add_access(self, access: Access) -> None:
        """Read what tokens are used for, too."""
        self._access = access

    def add_edge(self, ask: AskEdge) -> None:
        """Read what the edge knows of its connections, too."""
        self._ask_edge = ask

    def remove(self, statistics: Callable[[], Statistics]) -> None:
        """Read the model with these statistics no longer."""
        self._sources = [source for source in self._sources if source.statistics != statistics]

    def follow(self, followings: Callable[[], Iterable[FollowerStatus]]) -> None:
        """Read how the sources of models are followed, too."""
        self._followings = followings

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            due = time.monotonic() + _LAG_INTERVAL
            await asyncio.sleep(_LAG_INTERVAL)
            late = max(time.monotonic() - due, 0.0)
            self._lag.counts[bucket(late)] += 1
            self._lag.seconds += late

    async def read(self) -> Reading:
        """All of it as of the moment that the edge has answered, or was given up; call it on the event loop."""
        connections = await self._connections()
        models = [_model_points(source) for source in self._sources]
        points: dict[Instrument, list[Point]] = {instrument: [] for instrument in telemetry.INSTRUMENTS}
        callers = () if self._access is None else _caller_points(self._access)
        edge = () if connections is None else _connection_points(connections)
        for instrument, point in (pair for each in (*models, callers, edge, self._own_points()) for pair in each):
            points[instrument].append(point)
        return list(points.items())

    async def _connections(self) -> Connections | None:
        if self._ask_edge is None:
            return None
        try:
            async with asyncio.timeout(_EDGE_SECONDS):
                return await self._ask_edge()
        except OSError:  # TimeoutError is one
            return None

    def _own_points(self) -> Iterable[tuple[Instrument, Point]]:
        for (method, code), durations in self._rpcs.durations.items():
            yield telemetry.CALL_DURATION, Point(("grpc", method, code_pb2.Code.Name(code)), _distribution(durations))
        for following in self._followings():
            reference = following.reference
            for outcome, count in following.outcomes.items():
                yield telemetry.RELOADS, Point((reference, outcome), count)
            yield telemetry.REFUSED_VERSION, Point((reference,), int(following.refused is not None))
            yield telemetry.SOURCE_FAILING, Point((reference,), int(following.failing is not None))
        yield telemetry.LOOP_LAG, Point((), _distribution(self._lag))
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            yield telemetry.CPU_TIME, Point(("user",), cpu.user)
            yield telemetry.CPU_TIME, Point(("system",), cpu.system)
            yield telemetry.MEMORY, Point((), self._process.memory_info().rss)
        yield telemetry.UPTIME, Point((), time.monotonic() - self._started)


def _caller_points(access: Access) -> Iterable[tuple[Instrument, Point]]:
    for name, usage in access.usage.items():
        yield telemetry.TOKEN_REQUESTS, Point((name, "accepted"), usage.requests)
        for limit, count in usage.refused.items():
            yield telemetry.TOKEN_REQUESTS, Point((name, f"refused_{limit}"), count)
    for why, count in access.turned_away.items():
        yield telemetry.TURNED_AWAY, Point((why,), count)


def _connection_points(connections: Connections) -> Iterable[tuple[Instrument, Point]]:
    yield telemetry.CONNECTIONS, Point((), connections.open)
    yield telemetry.CONNECTED, Point((), connections.opened)
    for side, count in connections.cut.items():
        yield telemetry.CUT, Point((side,), count)
    for side, count in connections.resets.items():
        yield telemetry.RESETS, Point((side,), count)


def _model_points(source: MeteredModel) -> Iterable[tuple[Instrument, Point]]:
    seen = source.statistics()
    label = f"{source.name}@{source.version}"
    model = (label,)
    for outcome, count in seen.outcomes.items():
        yield telemetry.REQUESTS, Point((label, outcome.value), count)
    yield telemetry.QUEUE_TIME, Point(model, Distribution(seen.wait_times, seen.wait_seconds))
    yield telemetry.INFERENCE_TIME, Point(model, Distribution(seen.run_times, seen.run_seconds))
    yield telemetry.BATCH_SIZES, Point(model, _sizes(seen.batches))
    for reason, count in seen.closed.items():
        yield telemetry.BATCHES, Point((label, reason.value), count)
    for instrument, value in (
        (telemetry.PADDED, seen.rows_padded),
        (telemetry.SPLITS, seen.split),
        (telemetry.WAITING, seen.waiting),
        (telemetry.BACKLOG_LIMIT, source.max_backlog),
        (telemetry.RUNNING, seen.running),
        (telemetry.ENGINE_SLOTS, source.slots),
        (telemetry.FALLBACKS, source.fallbacks()),
    ):
        yield instrument, Point(model, value)
    about = (label, source.name, source.version, source.sha256, source.execution_provider)
    yield telemetry.MODEL_INFO, Point(about, 1)


def _distribution(durations: Durations) -> Distribution:
    return Distribution(tuple(durations.counts), durations.seconds)


def _sizes(batches: Mapping[int, int]) -> Distribution:
    counts = [0] * (len(telemetry.SIZE_BOUNDS) + 1)
    for rows, runs in batches.items():
        counts[bisect_left(telemetry.SIZE_BOUNDS, rows)] += runs
    return Distribution(tuple(counts), sum(rows * runs for rows, runs in batches.items()))
