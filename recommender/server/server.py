"""Composition root and life cycle: listen → load → warm up → ready → follow the models → drain → stop.

The server listens first, with health NOT_SERVING: a port in use is known before a large model is
loaded, and probes get an answer meanwhile. Nothing else is built anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from recommender.api.service import Limits, RecommenderService
from recommender.batching.batcher import Batcher
from recommender.batching.cost import Observation
from recommender.batching.statistics import Statistics
from recommender.domain import Model
from recommender.edges.address import address_of
from recommender.edges.grpc_aio.listener import grpc_listener
from recommender.edges.listener import Listener, MakeListener
from recommender.errors import EngineError
from recommender.models.artifact import Artifact
from recommender.models.follower import Follower
from recommender.models.loader import loader
from recommender.models.proof import check_elsewhere
from recommender.models.sources.opening import open_source, open_sources
from recommender.models.sources.source import Source
from recommender.models.version import FollowerStatus, Version
from recommender.observability.monitoring import Monitoring
from recommender.routing.candidate import Bounds, CandidateReport
from recommender.routing.router import Lane, Router, VersionEvent
from recommender.security.access import Access, read_grants
from recommender.security.certificates import read_certificates
from recommender.security.reloading import ReloadedFiles
from recommender.server.probes import Probes
from recommender.server.process import ExitCode
from recommender.settings.network import NetworkSettings
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings
from recommender.threads import in_background

log = structlog.get_logger(__name__)

_LAST_ANSWERS_SECONDS = 1.0
"""How long the last answers may take to leave."""
_LAST_STATUS_SECONDS = 0.1
"""How long the last change of health may take to leave."""


class Server:
    """One process's server: a listener, and for each version of a model that it serves a batcher and an engine.

    `listener` makes the listener, which notes its calls in the one and asks the other for tokens, if there are any;
    by default it is grpc.aio's. Telemetry goes to a collector as `otlp` says, by default to none. One of several on
    a `shared_port` listens only when it can answer, since connections come to it at once. `start` returns when requests
    are answered; `run` lasts until a stop is asked for or an engine is lost.
    """

    def __init__(
        self,
        settings: Settings,
        listener: MakeListener | None = None,
        otlp: Otlp | None = None,
        *,
        shared_port: bool = False,
    ) -> None:
        self._settings = settings
        self._shared_port = shared_port
        self._monitoring = Monitoring(settings.operations, settings.engine, otlp or Otlp())
        access = Access() if settings.network.tokens_file is not None else None
        self._listener: Listener = (
            grpc_listener(settings, self._monitoring.rpcs, access, shared_port=shared_port)
            if listener is None
            else listener(self._monitoring.rpcs, access)
        )
        self._secrets = _secrets(settings.network, self._listener, access)
        if access is not None:
            self._monitoring.watch_access(access)
        self._monitoring.watch_edge(self._listener.connections)
        self._probes = Probes() if settings.operations.health_port is not None else None
        self._stop = asyncio.Event()
        self._closing = False
        self._loader = loader(settings, lambda model: self._monitoring.tracer(model.name, model.version))
        self._router = Router(retire_grace=settings.engine.engine_timeout_ms / 1e3, observer=self._note)
        self._followers: list[Follower] = []
        self._following: list[asyncio.Task[None]] = []
        self._monitoring.watch_followers(self.followings)
        self.port = 0
        self.health_port = 0
        """Where probes are answered; 0 if nowhere."""
        self.serving = False
        """Whether calls are answered and more are welcome."""

    @property
    def model(self) -> Model:
        """The model that answers who names none; only after `start`."""
        return self._router.live.model

    @property
    def batcher(self) -> Batcher:
        """The batcher of that model's version, for its statistics; only after `start`."""
        return self._router.live.batcher

    def statistics(self) -> Statistics:
        """What all versions together have done."""
        return self._router.statistics()

    def split(self) -> CandidateReport | None:
        """How the candidate does beside the live version; None if there is none."""
        return None if self._router.candidate is None else self._router.candidate.statistics()

    def followings(self) -> Sequence[FollowerStatus]:
        """How the source of each model is followed."""
        return [follower.statistics() for follower in self._followers]

    @property
    def metrics_port(self) -> int:
        """Where the Prometheus endpoint listens; 0 if there is none."""
        return self._monitoring.metrics_port

    async def start(self) -> None:
        """Listen, load, warm up, and turn healthy. Raises StartError; then nothing is left running."""
        try:
            await self._answer_probes()
            for step in (self._load, self._listen) if self._shared_port else (self._listen, self._load):
                await step()
        except BaseException:
            await self.close()
            raise
        self.serving = True
        await self._listener.turn_serving()
        if self._probes is not None:
            await self._probes.turn(alive=True, ready=True)
        self._following = [asyncio.create_task(each.follow()) for each in self._followers if each.needs_following]

    def stop(self) -> None:
        """Ask `run` to drain and return; a second time changes nothing."""
        self._stop.set()

    async def run(self) -> ExitCode:
        """Serve until `stop` or until an engine is lost; then leave in order and say how it went."""
        stop = asyncio.create_task(self._stop.wait())
        broken = asyncio.create_task(self._router.lost())
        await asyncio.wait({stop, broken}, return_when=asyncio.FIRST_COMPLETED)
        lost = broken.result() if broken.done() else None
        for task in (stop, broken):
            task.cancel()
        if lost is not None:
            return await self._give_up(lost)
        return await self._drain()

    async def close(self) -> bool:
        """End everything at once; False if the engine is stuck in a run and only `os._exit` can end it."""
        self._closing = True
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        ended = await self._router.close()
        self._listener.end_watches()
        await self._listener.stop(_LAST_ANSWERS_SECONDS)
        for files in self._secrets:
            await files.close()
        await self._monitoring.close()
        if self._probes is not None:
            await self._probes.close()
        return ended

    async def _answer_probes(self) -> None:
        settings = self._settings
        if self._probes is not None and settings.operations.health_port is not None:
            self.health_port = await self._probes.listen(settings.network.host, settings.operations.health_port)
            log.info("probes", port=self.health_port)

    async def _turn_unready(self, *, alive: bool) -> None:
        self.serving = False
        await self._listener.turn_unready()
        if self._probes is not None:
            await self._probes.turn(alive=alive, ready=False)

    async def _listen(self) -> None:
        network = self._settings.network
        for files in self._secrets:
            await files.start()
        self.port = await self._listener.listen(network.host, network.port)
        log.info("listening", address=address_of(network.host, self.port), security=_security(network))
        log.info("settings", **self._settings.environment())
        # What one of several has to tell, its supervisor asks for, on this machine.
        await self._monitoring.start("127.0.0.1" if self._shared_port else network.host)

    async def _load(self) -> None:
        settings = self._settings
        for source in await in_background(open_sources, settings):
            lane = self._router.add_lane(source.reference, source.names)
            follower = self._follower(source, functools.partial(self._router.adopt, lane))
            self._followers.append(follower)
            lane.following = follower.statistics
            await follower.start()
        if settings.models.candidate:
            source = await in_background(open_source, settings, settings.models.candidate)
            lane = self._router.add_lane(source.reference, source.names)
            self._followers.append(self._trial(source, lane))
            lane.following = self._followers[-1].statistics
        self._listener.open(RecommenderService(self._router, limits=_limits(settings)))
        log.info("ready", models=[served.label for served in self._router.serving()])

    def _follower(self, source: Source, adopt: Callable[[Version], None]) -> Follower:
        settings = self._settings
        return Follower(
            source,
            prove=self._prove,
            load=self._loader.load,
            adopt=adopt,
            discard=self._router.discard,
            interval=settings.models.model_poll_ms / 1e3,
            patience=settings.models.registry_timeout_ms / 1e3,
            timeout=settings.models.reload_timeout_ms / 1e3,
        )

    def _trial(self, source: Source, lane: Lane) -> Follower:
        """What follows the source of the candidate: loaded when the server is ready, and judged beside the live one."""
        settings = self._settings
        bounds = Bounds(
            errors=settings.models.candidate_max_error_percent / 100,
            latency=settings.models.candidate_max_latency_ratio,
            least=settings.models.candidate_least_requests,
        )

        def adopt(served: Version) -> None:
            self._router.try_out(
                lane,
                served,
                mode=settings.models.candidate_mode,
                share=settings.models.candidate_share_percent / 100,
                bounds=bounds,
                refuse=follower.refuse,
            )

        follower = self._follower(source, adopt)
        return follower

    def _note(self, change: VersionEvent) -> None:
        if change.kind == "serving":
            self._monitoring.watch(change.served)
        elif not self._closing:  # a server that closes still sends what the version has done
            self._monitoring.forget(change.served)

    async def _prove(self, artifact: Artifact) -> Sequence[Observation]:
        """Prove a version in another process, which has this one's settings and opens the files as this one would."""
        settings = self._settings
        path = artifact.path if artifact.release is None else artifact.path.parent
        command = [sys.executable, "-m", "recommender", "models", "verify", str(path), "--json"]
        return await check_elsewhere(command, settings.environment(), settings.models.reload_timeout_ms / 1e3)

    async def _drain(self) -> ExitCode:
        await self._turn_unready(alive=True)
        # Load balancers need a moment to notice; until then calls come, and are answered.
        await asyncio.sleep(self._settings.operations.drain_wait_ms / 1e3)
        grace = self._settings.operations.drain_grace_ms / 1e3
        log.info("draining", grace_seconds=grace, waiting=self.statistics().waiting)
        started = time.monotonic()
        self._listener.drain()
        # gRPC cancels the calls that have arrived and were not yet taken up when it stops. So the door stays
        # open until nothing waits, for half of the grace at most: callers who ignore health cannot hold it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace / 2):
                await self._router.drain()
        stopping = asyncio.create_task(self._listener.stop(grace + _LAST_ANSWERS_SECONDS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace - (time.monotonic() - started)):
                await self._router.drain()
        seen = self.statistics()
        left = seen.waiting + seen.running
        await self._router.close()
        self._listener.end_watches()
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
        await self._turn_unready(alive=False)
        # Watchers of health learn it before their streams end.
        await asyncio.sleep(_LAST_STATUS_SECONDS)
        await self.close()
        return ExitCode.ENGINE_LOST


def _secrets(network: NetworkSettings, listener: Listener, access: Access | None) -> list[ReloadedFiles[Any]]:
    """The files of secrets that the settings name; each is read at the start and whenever it changes."""
    every = network.secrets_reload_ms / 1e3
    watched: list[ReloadedFiles[Any]] = []
    if network.tls_certificate is not None and network.tls_key is not None:
        paths = [network.tls_certificate, network.tls_key]
        paths += [network.tls_client_ca] if network.tls_client_ca is not None else []
        watched.append(
            ReloadedFiles("certificates", paths, parse=read_certificates, use=listener.use_certificates, every=every)
        )
    if network.tokens_file is not None and access is not None:
        watched.append(
            ReloadedFiles("tokens", [network.tokens_file], parse=read_grants, use=access.replace, every=every)
        )
    return watched


def _security(network: NetworkSettings) -> str:
    """How the port is secured, in a word or two, for the log."""
    transport = "plaintext" if network.tls_certificate is None else "TLS" if network.tls_client_ca is None else "mTLS"
    return transport if network.tokens_file is None else f"{transport}, tokens"


def _limits(settings: Settings) -> Limits:
    return Limits(
        history=settings.requests.max_history,
        excluded=settings.requests.max_excluded,
        candidates=settings.requests.max_candidates,
        batch_requests=settings.requests.max_batch_requests,
        reject_unknown=settings.requests.unknown_items == "reject",
    )
