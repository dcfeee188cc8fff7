"""Every metric and span attribute by its name, declared once, and the shape of a reading of them.

Names, units and attributes follow OpenTelemetry's semantic conventions; those without a convention begin with
`recommender.`. Prometheus names have underscores for dots, and end in the unit and `_total`.
docs/observability.md lists
them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from recommender.histogram import LATENCY_BOUNDS, CallExemplar

Kind: TypeAlias = Literal["counter", "updowncounter", "gauge", "histogram"]

SIZE_BOUNDS: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096)
"""Upper bounds of the buckets of batch sizes, in rows."""

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
RPC_STATUS_NUMBER: Final = "rpc.grpc.status_code"
"""The interceptor's older name: a number."""
ERROR_TYPE: Final = "error.type"
MODEL: Final = "recommender.model"
OUTCOME: Final = "recommender.outcome"
CLOSE_REASON: Final = "recommender.batch.close_reason"
MODEL_REFERENCE: Final = "recommender.model.reference"
MODEL_NAME: Final = "recommender.model.name"
MODEL_VERSION: Final = "recommender.model.version"
MODEL_SHA256: Final = "recommender.model.sha256"
EXECUTION_PROVIDER: Final = "recommender.execution_provider"
CPU_MODE: Final = "cpu.mode"
REQUEST_ID: Final = "recommender.request_id"
BATCH_ID: Final = "recommender.batch.id"
BATCH_SIZE: Final = "recommender.batch.size"
BATCH_CALLERS: Final = "recommender.batch.callers"
BATCH_CELLS: Final = "recommender.batch.cells"
BATCH_COUNT: Final = "recommender.batch.count"
CALLER: Final = "recommender.token"
REASON: Final = "recommender.reason"
SIDE: Final = "recommender.side"
FILE_KIND: Final = "recommender.file.kind"
FILE_PATH: Final = "recommender.file.path"
WAIT: Final = "recommender.wait"
RUN: Final = "recommender.run"

SPAN_QUEUE: Final = "queue"
SPAN_RUN: Final = "run"
SPAN_BATCH: Final = "batch"


@dataclass(frozen=True, slots=True)
class Instrument:
    """A declared metric: `unit` in UCUM, `meaning` for people, `attributes` that distinguish its series."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """Name in a Prometheus scrape; a histogram's series end in _bucket, _count and _sum."""
        ending = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + ending + ("_total" if self.kind == "counter" else "")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram so far: how many values fell into each bucket, the last without a bound, and their sum."""

    counts: tuple[int, ...]
    total: float
    exemplars: Mapping[int, CallExemplar] = field(default_factory=dict)
    """A call of some buckets."""


@dataclass(frozen=True, slots=True)
class DataPoint:
    """One series of an instrument: the values of its attributes, in their order, and its own."""

    attributes: tuple[str, ...]
    value: float | Distribution


Reading: TypeAlias = list[tuple[Instrument, list[DataPoint]]]
"""Every instrument with its data points, which are empty while it has nothing to report."""


CALL_DURATION: Final = Instrument(
    "rpc.server.call.duration",
    "histogram",
    "s",
    "From the arrival of a call in the server to its status, by method and status",
    (RPC_SYSTEM, RPC_METHOD, RPC_STATUS),
    LATENCY_BOUNDS,
)
REQUESTS: Final = Instrument(
    "recommender.requests",
    "counter",
    "{request}",
    "Requests by outcome: answered, refused_full and refused_deadline (not admitted), expired (while waiting), "
    "cancelled, invalid (for the model), failed, unavailable (draining or broken). A batch call counts each of its "
    "requests",
    (MODEL, OUTCOME),
)
QUEUE_TIME: Final = Instrument(
    "recommender.queue.time",
    "histogram",
    "s",
    "From a request's admission to the start of its batch",
    (MODEL,),
    LATENCY_BOUNDS,
)
INFERENCE_TIME: Final = Instrument(
    "recommender.inference.time", "histogram", "s", "One run of the engine on a batch", (MODEL,), LATENCY_BOUNDS
)
BATCH_SIZES: Final = Instrument("recommender.batch.size", "histogram", "{row}", "Rows of a run", (MODEL,), SIZE_BOUNDS)
BATCHES: Final = Instrument(
    "recommender.batches",
    "counter",
    "{batch}",
    "Batches by the reason for their size: full, drained (no other caller was waiting), "
    "or alike (other histories have another length)",
    (MODEL, CLOSE_REASON),
)
PADDED: Final = Instrument(
    "recommender.cells.padded",
    "counter",
    "{cell}",
    "Cells of batches without an item: the cost of padding unequal histories",
    (MODEL,),
)
SPLITS: Final = Instrument(
    "recommender.batch.splits", "counter", "{batch}", "Batches that failed and were halved to find the row", (MODEL,)
)
WAITING: Final = Instrument(
    "recommender.backlog.length", "updowncounter", "{request}", "Requests that wait for an engine slot", (MODEL,)
)
BACKLOG_LIMIT: Final = Instrument(
    "recommender.backlog.limit", "gauge", "{request}", "Requests that may wait; one more is refused", (MODEL,)
)
RUNNING: Final = Instrument(
    "recommender.running", "updowncounter", "{request}", "Requests in a batch that runs", (MODEL,)
)
ENGINE_SLOTS: Final = Instrument(
    "recommender.engine.slots",
    "gauge",
    "{slot}",
    "Batches that may run at once; inference time a second, divided by it, is the engine's busy share",
    (MODEL,),
)
FALLBACKS: Final = Instrument(
    "recommender.fallbacks",
    "counter",
    "{request}",
    "Requests answered from the fallback list, without a run",
    (MODEL,),
)
MODEL_INFO: Final = Instrument(
    "recommender.model.info",
    "gauge",
    "1",
    "Always 1; which model is served and on which execution provider of ONNX Runtime",
    (MODEL, MODEL_NAME, MODEL_VERSION, MODEL_SHA256, EXECUTION_PROVIDER),
)
RELOADS: Final = Instrument(
    "recommender.model.reloads",
    "counter",
    "{reload}",
    "Attempts to load a new version: served, refused (the previous one keeps serving), overtaken (another was "
    "wanted by then), rolled_back (a candidate outside its bounds)",
    (MODEL_REFERENCE, OUTCOME),
)
REFUSED_VERSION: Final = Instrument(
    "recommender.model.refused",
    "gauge",
    "1",
    "1 from the refusal of a version until a later one serves, else 0",
    (MODEL_REFERENCE,),
)
SOURCE_FAILING: Final = Instrument(
    "recommender.model.source.failing",
    "gauge",
    "1",
    "1 while the source of the model cannot be asked, else 0",
    (MODEL_REFERENCE,),
)
TOKEN_REQUESTS: Final = Instrument(
    "recommender.token.requests",
    "counter",
    "{request}",
    "Requests by the name of their token: accepted, refused_rate, or refused_concurrency and "
    "refused_scope (of these, calls)",
    (CALLER, OUTCOME),
)
TURNED_AWAY: Final = Instrument(
    "recommender.callers.turned_away",
    "counter",
    "{call}",
    "Calls without a token that is good: missing, unknown or expired",
    (REASON,),
)
HIDDEN_ITEMS: Final = Instrument("recommender.items.hidden", "gauge", "{item}", "Hidden items of the version", (MODEL,))
UNKNOWN_HIDDEN: Final = Instrument(
    "recommender.items.hidden.unknown",
    "gauge",
    "{key}",
    "Keys to hide that the version does not have",
    (MODEL,),
)
HIDDEN_BY_CALLS: Final = Instrument(
    "recommender.catalogue.hidden",
    "gauge",
    "{item}",
    "Items hidden by calls, in the journal, of all models",
)
MOST_HIDDEN: Final = Instrument(
    "recommender.catalogue.hidden.limit", "gauge", "{item}", "Items that calls may hide; one more is refused"
)
NEW_ITEMS: Final = Instrument(
    "recommender.items.new", "gauge", "{item}", "New items that the version ranks with its catalogue", (MODEL,)
)
NEW_KEPT: Final = Instrument(
    "recommender.catalogue.new", "gauge", "{item}", "Items in the journal that calls have added, of all models"
)
MOST_NEW: Final = Instrument(
    "recommender.catalogue.new.limit", "gauge", "{item}", "Items that calls may add; one more is refused"
)
CERTIFICATE_EXPIRY: Final = Instrument(
    "recommender.certificate.expiry",
    "gauge",
    "s",
    "Unix time at which a certificate file in use expires: when its first certificate does, for the clients' "
    "authorities when the last does",
    (FILE_PATH,),
)
FILES_STALE: Final = Instrument(
    "recommender.files.stale",
    "gauge",
    "1",
    "1 while changed certificates, tokens, hidden items, the table of items or the journal cannot be loaded and the "
    "previous ones stay in use, else 0",
    (FILE_KIND,),
)
ITEM_ROWS: Final = Instrument(
    "recommender.items.table.rows", "gauge", "{item}", "Items of the table of attributes in use"
)
ITEM_BYTES: Final = Instrument(
    "recommender.items.table.size", "gauge", "By", "Memory that the table of attributes in use takes"
)
ITEM_TABLES: Final = Instrument(
    "recommender.items.table.replaced", "counter", "{table}", "Tables of attributes that took the place of another"
)
FILTERS: Final = Instrument(
    "recommender.filters",
    "counter",
    "{filter}",
    "Filters of requests: ready (found in the cache) or evaluated",
    (OUTCOME,),
)
EVICTED: Final = Instrument(
    "recommender.filters.evicted", "counter", "{filter}", "Results of filters that the full cache dropped"
)
CONNECTIONS: Final = Instrument(
    "recommender.connections.open",
    "updowncounter",
    "{connection}",
    "Open connections of callers; this and the next three are counted by Envoy, on its edge only",
)
CONNECTED: Final = Instrument(
    "recommender.connections.opened", "counter", "{connection}", "Connections that callers have opened"
)
CUT: Final = Instrument(
    "recommender.connections.cut",
    "counter",
    "{connection}",
    "Connections that ended with open calls, by the side that ended them: client or server",
    (SIDE,),
)
RESETS: Final = Instrument(
    "recommender.calls.reset",
    "counter",
    "{call}",
    "Calls that ended without an answer: cancelled by the client, or its connection with them; or reset by the server",
    (SIDE,),
)
LOOP_LAG: Final = Instrument(
    "recommender.event_loop.lag",
    "histogram",
    "s",
    "Lag of the event loop's timers, sampled ten times a second, in whole milliseconds",
    (),
    LATENCY_BOUNDS,
)
CPU_TIME: Final = Instrument(
    "process.cpu.time", "counter", "s", "CPU time of the process, user and system", (CPU_MODE,)
)
MEMORY: Final = Instrument("process.memory.usage", "updowncounter", "By", "Resident memory of the process")
UPTIME: Final = Instrument("process.uptime", "gauge", "s", "Since the server was built")

OF_ENVOY: Final = (CONNECTIONS, CONNECTED, CUT, RESETS)
"""Only servers behind Envoy have these."""
INSTRUMENTS: Final = (
    CALL_DURATION,
    REQUESTS,
    QUEUE_TIME,
    INFERENCE_TIME,
    BATCH_SIZES,
    BATCHES,
    PADDED,
    SPLITS,
    WAITING,
    BACKLOG_LIMIT,
    RUNNING,
    ENGINE_SLOTS,
    FALLBACKS,
    MODEL_INFO,
    RELOADS,
    REFUSED_VERSION,
    SOURCE_FAILING,
    TOKEN_REQUESTS,
    TURNED_AWAY,
    HIDDEN_ITEMS,
    UNKNOWN_HIDDEN,
    HIDDEN_BY_CALLS,
    MOST_HIDDEN,
    NEW_ITEMS,
    NEW_KEPT,
    MOST_NEW,
    CERTIFICATE_EXPIRY,
    FILES_STALE,
    ITEM_ROWS,
    ITEM_BYTES,
    ITEM_TABLES,
    FILTERS,
    EVICTED,
    *OF_ENVOY,
    LOOP_LAG,
    CPU_TIME,
    MEMORY,
    UPTIME,
)
