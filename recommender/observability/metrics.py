"""Read all counts as metrics: one consistent reading of everything per scrape or push.

The hot path counts in plain integers; a reading turns them into data points, so that scrapes cost and calls do not.
Readings are taken on the event loop, where no count changes meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import psutil
from google.rpc import code_pb2

from recommender.catalogue.availability.journal import MOST_HIDDEN
from recommender.edges.calls import Calls
from recommender.edges.listener import Connections
from recommender.histogram import CallExemplar, Durations, bucket
from recommender.models.attributes import ItemAttributes
from recommender.models.availability import Availability
from recommender.models.follower import FollowerStatus
from recommender.models.version import Version
from recommender.observability import instruments
from recommender.observability.instruments import DataPoint, Distribution, Instrument, Reading
from recommender.security.access import Access
from recommender.security.certificates import Certificates
from recommender.security.reloading import ReloadedFiles
from recommender.settings.engine import EngineSettings

_LAG_SECONDS = 0.1
"""Interval between two measurements of the event loop's lag."""
_EDGE_SECONDS = 1.0
"""How long a reading waits for the edge's connection counts; a late edge is left out."""


_KEEP_SECONDS = 60.0
"""Longer than the time between two scrapes."""
_COUNTED = ("counter", "histogram")

_Points: TypeAlias = Iterable[tuple[Instrument, DataPoint]]

AskEdge: TypeAlias = Callable[[], Awaitable[Connections | None]]
"""Ask an edge for its connections; None if it has no counts. Raises OSError if it does not answer."""


class _Left(NamedTuple):
    """The counts of a version when it was retired."""

    until: float
    """When it is read no longer, on the monotonic clock."""
    counts: list[tuple[Instrument, DataPoint]]


class Metrics:
    """Everything to read: calls, event loop, process, and added sources. `engine` has the limits to report.

    The counts of a removed version are read for `keep` more seconds, so that an infrequent reader misses none of them.
    """

    def __init__(self, rpcs: Calls, engine: EngineSettings, *, keep: float = _KEEP_SECONDS) -> None:
        self._rpcs = rpcs
        self._engine = engine
        self._keep = max(keep, _KEEP_SECONDS)
        self._left: dict[str, _Left] = {}
        """By label."""
        self._followers: Callable[[], Iterable[FollowerStatus]] = tuple
        self._access: Access | None = None
        self._ask_edge: AskEdge | None = None
        self._files: Sequence[ReloadedFiles[Any]] = ()
        self._availability: Availability | None = None
        self._attributes: ItemAttributes | None = None
        self._versions: list[Version] = []
        self._lag = Durations()
        self._process = psutil.Process()
        self._started = time.monotonic()

    def add(self, version: Version) -> None:
        """Read this version too, and no longer another of the same label: a series may come but once."""
        self._versions = [*(each for each in self._versions if each.model.label != version.model.label), version]

    def remove(self, version: Version) -> None:
        """Read what this version has counted for the last time, and its state no longer."""
        now = time.monotonic()
        self._left = {label: left for label, left in self._left.items() if left.until > now}
        if version in self._versions:
            counts = [each for each in _version_points(version, self._engine) if each[0].kind in _COUNTED]
            self._left[version.model.label] = _Left(now + self._keep, counts)
        self._versions = [each for each in self._versions if each is not version]

    def add_access(self, access: Access) -> None:
        """Read the use of tokens too."""
        self._access = access

    def add_files(self, files: Sequence[ReloadedFiles[Any]]) -> None:
        """Read the state of reloaded files too."""
        self._files = files

    def add_availability(self, availability: Availability) -> None:
        """Read how many items are hidden too."""
        self._availability = availability

    def add_attributes(self, attributes: ItemAttributes) -> None:
        """Read the table of items too."""
        self._attributes = attributes

    def add_edge(self, ask: AskEdge) -> None:
        """Read the edge's connections too."""
        self._ask_edge = ask

    def add_followers(self, statuses: Callable[[], Iterable[FollowerStatus]]) -> None:
        """Read the followers of model sources too."""
        self._followers = statuses

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            due = time.monotonic() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            late = max(time.monotonic() - due, 0.0)
            self._lag.counts[bucket(late)] += 1
            self._lag.seconds += late

    async def read(self) -> Reading:
        """Read everything at the moment that the edge has answered or timed out; call it on the event loop."""
        connections = await self._connections()
        models = [*(_version_points(version, self._engine) for version in self._versions), *self._left_points()]
        points: dict[Instrument, list[DataPoint]] = {instrument: [] for instrument in instruments.INSTRUMENTS}
        callers = () if self._access is None else _caller_points(self._access)
        edge = () if connections is None else _connection_points(connections)
        files = [_file_points(each) for each in self._files]
        shelves = () if self._availability is None else _shelf_points(self._availability)
        table = () if self._attributes is None else _table_points(self._attributes)
        told = (*models, callers, *files, shelves, table, edge, self._own_points())
        for instrument, point in (pair for each in told for pair in each):
            points[instrument].append(point)
        return list(points.items())

    def _left_points(self) -> Iterable[_Points]:
        """The counts of versions that left and have not come back."""
        now = time.monotonic()
        serving = {version.model.label for version in self._versions}
        return [left.counts for label, left in self._left.items() if left.until > now and label not in serving]

    async def _connections(self) -> Connections | None:
        if self._ask_edge is None:
            return None
        try:
            async with asyncio.timeout(_EDGE_SECONDS):
                return await self._ask_edge()
        except OSError:  # TimeoutError is one
            return None

    def _own_points(self) -> Iterable[tuple[Instrument, DataPoint]]:
        for (method, code), durations in self._rpcs.durations.items():
            attributes = ("grpc", method, code_pb2.Code.Name(code))
            exemplars = dict(self._rpcs.exemplars.get((method, code), {}))
            yield instruments.CALL_DURATION, DataPoint(attributes, _distribution(durations, exemplars))
        for status in self._followers():
            reference = status.reference
            for outcome, count in status.outcomes.items():
                yield instruments.RELOADS, DataPoint((reference, outcome), count)
            yield instruments.REFUSED_VERSION, DataPoint((reference,), int(status.refused is not None))
            yield instruments.SOURCE_FAILING, DataPoint((reference,), int(status.failing is not None))
        yield instruments.LOOP_LAG, DataPoint((), _distribution(self._lag))
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            yield instruments.CPU_TIME, DataPoint(("user",), cpu.user)
            yield instruments.CPU_TIME, DataPoint(("system",), cpu.system)
            yield instruments.MEMORY, DataPoint((), self._process.memory_info().rss)
        yield instruments.UPTIME, DataPoint((), time.monotonic() - self._started)


def _caller_points(access: Access) -> Iterable[tuple[Instrument, DataPoint]]:
    for name, usage in access.usage.items():
        yield instruments.TOKEN_REQUESTS, DataPoint((name, "accepted"), usage.requests)
        for limit, count in usage.refused.items():
            yield instruments.TOKEN_REQUESTS, DataPoint((name, f"refused_{limit}"), count)
    for why, count in access.turned_away.items():
        yield instruments.TURNED_AWAY, DataPoint((why,), count)


def _file_points(files: ReloadedFiles[Any]) -> Iterable[tuple[Instrument, DataPoint]]:
    yield instruments.FILES_STALE, DataPoint((files.what,), int(files.stale))
    if isinstance(files.used, Certificates):
        for path, expires in zip(files.paths, files.used.expiries, strict=True):
            if expires is not None:
                yield instruments.CERTIFICATE_EXPIRY, DataPoint((str(path),), expires.timestamp())


def _shelf_points(availability: Availability) -> Iterable[tuple[Instrument, DataPoint]]:
    for followed in (availability.list, availability.kept):
        if followed is not None:
            yield instruments.FILES_STALE, DataPoint((followed.what,), int(followed.stale))
    if availability.kept is not None:
        yield instruments.HIDDEN_BY_CALLS, DataPoint((), availability.kept.hidden)
        yield instruments.MOST_HIDDEN, DataPoint((), MOST_HIDDEN)
        yield instruments.NEW_KEPT, DataPoint((), availability.kept.new_items)
        yield instruments.MOST_NEW, DataPoint((), availability.most_new)
    for label, shelf in availability.shelves().items():
        yield instruments.HIDDEN_ITEMS, DataPoint((label,), shelf.hidden)
        yield instruments.UNKNOWN_HIDDEN, DataPoint((label,), shelf.unknown)
        yield instruments.NEW_ITEMS, DataPoint((label,), shelf.new)


def _table_points(attributes: ItemAttributes) -> Iterable[tuple[Instrument, DataPoint]]:
    if (table := attributes.statistics()) is None:
        return
    yield instruments.FILES_STALE, DataPoint((attributes.what,), int(table.stale))
    yield instruments.ITEM_ROWS, DataPoint((), table.rows)
    yield instruments.ITEM_BYTES, DataPoint((), table.bytes)
    yield instruments.ITEM_TABLES, DataPoint((), table.replaced)
    yield instruments.FILTERS, DataPoint(("ready",), table.ready)
    yield instruments.FILTERS, DataPoint(("evaluated",), table.evaluated)
    yield instruments.EVICTED, DataPoint((), table.evicted)


def _connection_points(connections: Connections) -> Iterable[tuple[Instrument, DataPoint]]:
    yield instruments.CONNECTIONS, DataPoint((), connections.open)
    yield instruments.CONNECTED, DataPoint((), connections.opened)
    for side, count in connections.cut.items():
        yield instruments.CUT, DataPoint((side,), count)
    for side, count in connections.resets.items():
        yield instruments.RESETS, DataPoint((side,), count)


def _version_points(version: Version, engine: EngineSettings) -> Iterable[tuple[Instrument, DataPoint]]:
    seen = version.batcher.statistics()
    label = version.model.label
    model = (label,)
    for outcome, count in seen.outcomes.items():
        yield instruments.REQUESTS, DataPoint((label, outcome.value), count)
    yield instruments.QUEUE_TIME, DataPoint(model, Distribution(seen.wait_times, seen.wait_seconds))
    yield instruments.INFERENCE_TIME, DataPoint(model, Distribution(seen.run_times, seen.run_seconds))
    yield instruments.BATCH_SIZES, DataPoint(model, _sizes(seen.batches))
    for reason, count in seen.closed.items():
        yield instruments.BATCHES, DataPoint((label, reason.value), count)
    for instrument, value in (
        (instruments.PADDED, seen.rows_padded),
        (instruments.SPLITS, seen.split),
        (instruments.WAITING, seen.waiting),
        (instruments.BACKLOG_LIMIT, engine.max_backlog),
        (instruments.RUNNING, seen.running),
        (instruments.ENGINE_SLOTS, engine.engine_slots),
        (instruments.FALLBACKS, version.fallbacks),
    ):
        yield instrument, DataPoint(model, value)
    about = (label, version.model.name, version.model.version, version.sha256, version.execution_provider)
    yield instruments.MODEL_INFO, DataPoint(about, 1)


def _distribution(durations: Durations, exemplars: Mapping[int, CallExemplar] | None = None) -> Distribution:
    return Distribution(tuple(durations.counts), durations.seconds, exemplars or {})


def _sizes(batches: Mapping[int, int]) -> Distribution:
    counts = [0] * (len(instruments.SIZE_BOUNDS) + 1)
    for rows, runs in batches.items():
        counts[bisect_left(instruments.SIZE_BOUNDS, rows)] += runs
    return Distribution(tuple(counts), sum(rows * runs for rows, runs in batches.items()))
