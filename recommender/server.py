"""Composition root and life cycle: listen → load → warm up → ready → drain → stop.

The server listens first, with health NOT_SERVING: a port in use is known before a large model is
loaded, and probes get an answer meanwhile. Nothing else is built anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from recommender.batcher import Batcher
from recommender.cost import Cost
from recommender.domain import Model
from recommender.edge import SERVICE_NAME, Edge
from recommender.engine import Memory, OnnxEngine
from recommender.errors import EngineError, StartError
from recommender.fallback import read_fallback
from recommender.provider import CoreMLOptions, CudaOptions
from recommender.reflection import add_reflection
from recommender.service import Limits, RecommenderService, Served
from recommender.settings import Settings
from recommender.store import Artifact, find_model, open_artifact
from recommender.vocabulary import Vocabulary

log = structlog.get_logger(__name__)

_LAST_ANSWERS_SECONDS = 1.0
"""How long the last answers may take to leave."""
_LAST_STATUS_SECONDS = 0.1
"""How long the last change of health may take to leave."""


class ExitCode(IntEnum):
    """What the process tells its parent."""

    DRAINED = 0
    """Every accepted request was answered."""
    NOT_STARTED = 2
    """A setting, the model or the port stopped the start; the log has the sentence."""
    GRACE_RAN_OUT = 3
    """Stopped as asked, and requests that were still open after the grace were given up."""
    ENGINE_LOST = 70
    """The engine hung or died; callers were told, and a new process is needed."""


class Server:
    """One process's server: an edge, a batcher and an engine, from settings.

    `start` returns when requests are answered; `run` lasts until a stop is asked for or the engine is lost.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._edge = Edge(default_timeout=settings.default_timeout_ms / 1e3, most_open=settings.max_stream_requests)
        self._health = _Health()
        self._server = _grpc_server(self._edge, self._health, settings.max_message_bytes)
        self._stop = asyncio.Event()
        self._engine: OnnxEngine | None = None
        self._batcher: Batcher | None = None
        self.port = 0

    @property
    def model(self) -> Model:
        """The model that is served; only after `start`."""
        if self._engine is None:
            raise RuntimeError("the server has not started")
        return self._engine.model

    @property
    def batcher(self) -> Batcher:
        """The batcher, for its statistics; only after `start`."""
        if self._batcher is None:
            raise RuntimeError("the server has not started")
        return self._batcher

    async def start(self) -> None:
        """Listen, load, warm up, and turn healthy. Raises StartError; then nothing is left running."""
        try:
            await self._listen()
            await self._load()
        except BaseException:
            await self.close()
            raise
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Ask `run` to drain and return; a second time changes nothing."""
        self._stop.set()

    async def run(self) -> ExitCode:
        """Serve until `stop` or until the engine is lost; then leave in order and say how it went."""
        stop = asyncio.create_task(self._stop.wait())
        broken = asyncio.create_task(self.batcher.broken())
        await asyncio.wait({stop, broken}, return_when=asyncio.FIRST_COMPLETED)
        lost = broken.result() if broken.done() else None
        for task in (stop, broken):
            task.cancel()
        if lost is not None:
            return await self._give_up(lost)
        return await self._drain()

    async def close(self) -> bool:
        """End everything at once; False if the engine is stuck in a run and only `os._exit` can end it."""
        if self._batcher is not None:
            await self._batcher.close()
        self._health.end_watches()
        await self._server.stop(_LAST_ANSWERS_SECONDS)
        return await asyncio.to_thread(self._engine.close) if self._engine is not None else True

    async def _listen(self) -> None:
        settings = self._settings
        address = _address(settings.host, settings.port)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {address}: the port is in use or the address is not this machine's; stop the other "
                "server, or set RECOMMENDER_PORT (0 takes a free one) or RECOMMENDER_HOST"
            ) from error
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        log.info("listening", address=_address(settings.host, self.port))

    async def _load(self) -> None:
        settings = self._settings
        path = find_model(settings.weights_dir, settings.num_recommendations, settings.model)
        artifact = await asyncio.to_thread(open_artifact, path)
        if artifact.card is None:
            log.warning("model has no card: nothing to verify it by", path=str(path))
        engine = self._engine = await asyncio.to_thread(open_engine, settings, artifact)
        if engine.fallback_reason is not None:
            log.warning("the model runs on the CPU", reason=engine.fallback_reason)
        if settings.cuda_graph and not engine.captures:
            log.warning("runs are not captured as CUDA graphs: the model has branches or loops, or is not on CUDA")
        limit = _limit(settings, engine.model)
        observations = await engine.warm_up(settings.max_batch_size)
        self._batcher = Batcher(
            engine,
            max_batch_size=settings.max_batch_size,
            max_backlog=settings.max_backlog,
            engine_timeout=settings.engine_timeout_ms / 1e3,
            cost=Cost.fit(observations),
            slots=settings.engine_slots,
            deduplicate=settings.deduplicate,
        )
        served = await asyncio.to_thread(_served, engine, artifact, self._batcher)
        self._edge.open(RecommenderService(served, limit=limit, limits=_limits(settings)))
        _log_model(engine, artifact)

    async def _drain(self) -> ExitCode:
        await self._health.enter_graceful_shutdown()
        grace = self._settings.drain_grace_ms / 1e3
        log.info("draining", grace_seconds=grace, waiting=self.batcher.statistics().waiting)
        started = time.monotonic()
        self._edge.drain()
        # gRPC cancels the calls that have arrived and were not yet taken up when it stops. So the door stays
        # open until nothing waits, for half of the grace at most: callers who ignore health cannot hold it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace / 2):
                await self.batcher.drain()
        stopping = asyncio.create_task(self._server.stop(grace + _LAST_ANSWERS_SECONDS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace - (time.monotonic() - started)):
                await self.batcher.drain()
        seen = self.batcher.statistics()
        left = seen.waiting + seen.running
        await self.batcher.close()
        self._health.end_watches()
        await stopping
        await self.close()
        log.info(
            "stopped",
            seconds=round(time.monotonic() - started, 3),
            given_up=left,
            answered=seen.answered,
            runs=sum(seen.batches.values()),
            rows_run=seen.rows_run,
        )
        return ExitCode.GRACE_RAN_OUT if left else ExitCode.DRAINED

    async def _give_up(self, lost: EngineError) -> ExitCode:
        log.error("engine lost", reason=str(lost))
        await self._health.enter_graceful_shutdown()
        # Watchers of health learn it before their streams end.
        await asyncio.sleep(_LAST_STATUS_SECONDS)
        await self.close()
        return ExitCode.ENGINE_LOST

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)


class _Health(health.aio.HealthServicer):
    """The library's health service, whose Watch calls would else hold up a server that stops."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(  # noqa: N802 (gRPC names methods so)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Send the status now and whenever it changes, until the caller leaves or `end_watches`."""
        watch = asyncio.create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
        finally:
            watch.cancel()
            self._watches.discard(watch)

    def end_watches(self) -> None:
        """End every Watch call as if all had been said."""
        for watch in self._watches:
            watch.cancel()


@contextlib.asynccontextmanager
async def stopping_on_signals(server: Server) -> AsyncIterator[None]:
    """SIGTERM and SIGINT drain the server; a second one ends the process at once, as the signal would."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal(number: signal.Signals) -> None:
        log.info("signal", name=number.name)
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        server.stop()

    for each in signals:
        loop.add_signal_handler(each, on_signal, each)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def open_engine(settings: Settings, artifact: Artifact, threads: int | None = None) -> OnnxEngine:
    """The engine for a model as the settings want it, `threads` instead of their number where it is given."""
    return OnnxEngine(
        artifact,
        device=settings.device,
        threads=settings.threads if threads is None else threads,
        spinning=settings.thread_spinning,
        slots=settings.engine_slots,
        cuda=CudaOptions(
            device_id=settings.cuda_device_id,
            memory_limit_mb=settings.cuda_memory_limit_mb,
            arena=settings.cuda_arena,
            graph=settings.cuda_graph,
            tf32=settings.cuda_tf32,
        ),
        coreml=CoreMLOptions(settings.coreml_compute_units, settings.coreml_model_format),
    )


def _grpc_server(edge: Edge, healthy: _Health, max_message_bytes: int) -> grpc.aio.Server:
    options = (
        ("grpc.so_reuseport", 0),  # else a second server would share the port in silence
        ("grpc.max_receive_message_length", max_message_bytes),
        # Clients may ping every ten seconds, as they must to stay alive behind a load balancer.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    )
    server = grpc.aio.server(options=options)
    edge.add_to(server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    add_reflection(server, (SERVICE_NAME, health.SERVICE_NAME))
    return server


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _limit(settings: Settings, model: Model) -> int:
    """The number a caller gets who asks for none; the configured one must be in the model's reach."""
    if settings.num_recommendations > model.max_k:
        raise StartError(
            f"RECOMMENDER_NUM_RECOMMENDATIONS is {settings.num_recommendations} and {model.label} returns "
            f"{model.max_k} at most: lower it, or export the model with more"
        )
    return settings.num_recommendations


def _limits(settings: Settings) -> Limits:
    return Limits(
        history=settings.max_history,
        excluded=settings.max_excluded,
        candidates=settings.max_candidates,
        batch_requests=settings.max_batch_requests,
        reject_unknown=settings.unknown_items == "reject",
    )


def _served(engine: OnnxEngine, artifact: Artifact, batcher: Batcher) -> Served:
    """The engine's model with its vocabulary and fallback list. Raises ModelError if one of them is at fault."""
    model, card = engine.model, artifact.card
    vocabulary = fallback = None
    if card is not None and artifact.vocabulary is not None:
        vocabulary = Vocabulary.open(artifact.vocabulary, card.items)
    if card is not None and artifact.fallback is not None:
        fallback = read_fallback(artifact.fallback, card.items)
    return Served(
        model=model,
        batcher=batcher,
        abilities=engine.contract.inputs | engine.contract.outputs,
        sha256=artifact.sha256,
        embedding_size=card.embedding_size if card else None,
        execution_provider=engine.provider,
        loaded_at=datetime.now(UTC),
        vocabulary=vocabulary,
        fallback=fallback or (),
    )


def _log_model(engine: OnnxEngine, artifact: Artifact) -> None:
    model = engine.model
    log.info(
        "ready",
        model=model.label,
        sha256=artifact.sha256[:12],
        items=model.items,
        max_k=model.max_k,
        provider=engine.provider,
        threads=engine.threads,
        **_memory(engine.memory),
    )
    if not engine.contract.batched:
        log.warning("model has the older form without a batch axis: rows run one by one, so batching saves nothing")


def _memory(memory: Memory) -> dict[str, float | None]:
    """What the model costs, for the log: its constants, how often they stand in memory, and what runs take."""
    copies = memory.copies
    return {
        "constants_mb": _mb(memory.constants),
        "loaded_mb": _mb(memory.loaded),
        "copies": None if copies is None else round(copies, 1),
        "working_mb": _mb(memory.working),
    }


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)
