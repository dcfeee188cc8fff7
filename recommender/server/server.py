"""Composition root and life cycle: listen → load → warm up → ready → follow the models → drain → stop.

The server listens first, with health NOT_SERVING. So a port in use is known before a large model is loaded, and
probes get an answer meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from recommender.api.changes.service import open_catalogue_service
from recommender.api.queries import Limits
from recommender.api.service import RecommenderService
from recommender.batching.batcher import Batcher
from recommender.batching.statistics import Statistics
from recommender.catalogue.availability.opening import open_list
from recommender.domain import Model
from recommender.edges.address import address_of
from recommender.edges.grpc_aio.listener import GrpcListener
from recommender.edges.listener import Listener, MakeListener
from recommender.edges.methods import methods_of
from recommender.errors import EngineError
from recommender.models.attributes import ItemAttributes
from recommender.models.availability import Availability
from recommender.models.follower import FollowerStatus
from recommender.models.loader import loader
from recommender.models.version import Version
from recommender.observability.monitoring import Monitoring
from recommender.routing.candidate import CandidateReport
from recommender.routing.router import Router, VersionEvent
from recommender.security.access import Access, read_grants
from recommender.security.certificates import read_certificates
from recommender.security.reloading import ReloadedFiles
from recommender.server.followers import Followers
from recommender.server.health_port import HealthPort
from recommender.server.process import ExitCode, any_of, unless_stopped
from recommender.settings.network import NetworkSettings
from recommender.settings.otlp import Otlp
from recommender.settings.settings import Settings
from recommender.threads import in_background

log = structlog.get_logger(__name__)

_LAST_ANSWERS_SECONDS = 1.0
"""Time for the last answers to be sent."""
_LAST_STATUS_SECONDS = 0.1
"""Time for the last change of health to reach its watchers."""


class Server:
    """One process's server: a listener, and a batcher and an engine for each version that it serves.

    `listener` builds the edge, by default grpc.aio's. `otlp` sends telemetry to a collector, by default none. One of
    several on a `shared_port` listens only once it can answer, because connections come at once. `start` returns when
    requests are answered; `run` lasts until `stop` or until an engine is lost. `close` sends the last lines of the log.
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
        self._monitoring = Monitoring(
            settings.operations, settings.engine, otlp or Otlp(), intercepted=listener is None
        )
        access = Access() if settings.network.tokens_file is not None else None
        self._methods = methods_of(
            settings.network, self._monitoring.rpcs, access, catalogue=settings.catalogue.catalogue_writes
        )
        self._listener: Listener = (
            GrpcListener(self._methods, settings.network, self._monitoring.sampler, shared_port=shared_port)
            if listener is None
            else listener(self._methods)
        )
        self._secrets = _secrets(settings.network, self._listener, access)
        if access is not None:
            self._monitoring.watch_access(access)
        self._monitoring.watch_files(self._secrets)
        self._monitoring.watch_edge(self._listener.connections)
        self._probes = HealthPort(settings.network) if settings.operations.health_port is not None else None
        self._stop = asyncio.Event()
        self._started = self._closing = False
        self._router = Router(retire_grace=settings.engine.engine_timeout_ms / 1e3, observer=self._note)
        self._availability = Availability(
            open_list(settings.catalogue.hidden_items),
            every=settings.catalogue.hidden_items_poll_ms / 1e3,
            journal=settings.catalogue.catalogue_journal,
            most_new=settings.catalogue.max_new_items,
        )
        self._monitoring.watch_availability(self._availability)
        self._attributes = ItemAttributes.of(settings.catalogue)
        self._monitoring.watch_attributes(self._attributes)
        loading = loader(
            settings,
            lambda model: self._monitoring.tracer(model.name, model.version),
            prepare=_preparing(self._availability, self._attributes),
        )
        self._followers = Followers(settings, loading, self._router, self._availability)
        self._monitoring.watch_followers(self._followers.statistics)
        self.port = 0
        self.health_port = 0
        """Port of the probes' health service; 0 without one."""
        self.serving = False
        """Whether calls are answered and more are welcome."""

    @property
    def model(self) -> Model:
        """Model that answers requests without a model name; only after `start`."""
        return self._router.live.model

    @property
    def batcher(self) -> Batcher:
        """Batcher of that model's version, for its statistics; only after `start`."""
        return self._router.live.batcher

    def statistics(self) -> Statistics:
        """Sum of the statistics of all versions."""
        return self._router.statistics()

    def split(self) -> CandidateReport | None:
        """Comparison of the candidate with the live version; None without a candidate."""
        return None if self._router.candidate is None else self._router.candidate.statistics()

    def followings(self) -> Sequence[FollowerStatus]:
        """How the source of each model is followed."""
        return self._followers.statistics()

    @property
    def metrics_port(self) -> int:
        """Port of the Prometheus endpoint; 0 without one."""
        return self._monitoring.metrics_port

    async def start(self) -> None:
        """Listen, load, warm up, and turn healthy; `stop` ends it early. Raises StartError, with nothing left running.

        A load that hangs cannot hold up the end: after the grace it is left behind.
        """
        await unless_stopped(self._start(), self._stop, self._settings.operations.drain_grace_ms / 1e3)

    async def _start(self) -> None:
        try:
            with contextlib.suppress(OSError):  # listening says what is wrong with the host
                # gRPC would wait for a name server on the event loop, where no stop is heard.
                await in_background(socket.getaddrinfo, self._settings.network.host, None)
            await self._answer_probes()
            await self._followers.open()
            for step in (self._load, self._listen) if self._shared_port else (self._listen, self._load):
                await step()
        except BaseException:
            await self.close()
            raise
        self._started = self.serving = True
        self._methods.health.turn(serving=True)
        if self._probes is not None:
            self._probes.turn(alive=True, ready=True)
        self._followers.follow()

    def stop(self) -> None:
        """Ask `run` to drain and return; a second call is a no-op."""
        self._stop.set()

    async def run(self) -> ExitCode:
        """Serve until `stop` or until an engine is lost; then drain or give up. Returns at once if nothing serves."""
        if not self._started:
            return ExitCode.DRAINED
        lost = asyncio.create_task(self._router.lost())
        try:
            await any_of(self._stop.wait(), lost)
            error = lost.result() if lost.done() else None
        finally:
            lost.cancel()
        return await (self._drain() if error is None else self._give_up(error))

    async def close(self) -> bool:
        """Stop everything at once; False if an engine is stuck in a run, which only `os._exit` ends."""
        ended = await self._end()
        await self._monitoring.end_log()
        return ended

    async def _end(self) -> bool:
        """Stop everything but the sending of the log."""
        self._closing = True
        await self._followers.close()
        await self._availability.close()
        await self._attributes.close()
        ended = await self._router.close()
        self._methods.health.end_watches()
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

    def _turn_unready(self, *, alive: bool) -> None:
        self.serving = False
        self._methods.health.leave()
        if self._probes is not None:
            self._probes.turn(alive=alive, ready=False)

    async def _listen(self) -> None:
        network = self._settings.network
        for files in self._secrets:
            await files.start()
        with self._monitoring.listening():
            self.port = await self._listener.listen(network.host, network.port)
        log.info("listening", address=address_of(network.host, self.port), security=_security(network))
        if network.edge == "grpc" and network.beyond_this_machine:
            log.info(
                "use the envoy edge for untrusted clients; the grpc edge is for known callers", see="docs/security.md"
            )
        log.info("settings", **self._settings.changed())
        # The supervisor collects the metrics of one of several, on this machine.
        await self._monitoring.start("127.0.0.1" if self._shared_port else network.host)

    async def _load(self) -> None:
        await self._availability.start()
        await self._attributes.start()
        await self._followers.load()
        self._methods.open(
            RecommenderService(self._router, limits=Limits.of(self._settings.requests)),
            open_catalogue_service(self._availability, self._attributes, self._router),
        )
        models = [served.label for served in self._router.serving()]
        log.info(
            "ready",
            models=models,
            ask=_client_command(self._settings.network, self.port),
        )

    def _note(self, change: VersionEvent) -> None:
        if change.kind == "serving":
            self._monitoring.watch(change.version)
            return
        self._availability.forget(change.version)
        if not self._closing:  # a server that closes still sends what the version has done
            self._monitoring.forget(change.version)

    async def _drain(self) -> ExitCode:
        self._turn_unready(alive=True)
        # Load balancers need a moment to notice; calls that come until then are answered.
        await asyncio.sleep(self._settings.operations.drain_wait_ms / 1e3)
        grace = self._settings.operations.drain_grace_ms / 1e3
        log.info("draining", grace_seconds=grace, waiting=self.statistics().waiting)
        started = time.monotonic()
        self._methods.drain()
        # A stopping gRPC server cancels calls that have arrived and are not yet handled. So the listener stays open
        # until nothing waits, for half of the grace at most: callers that ignore health cannot hold it open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace / 2):
                await self._router.drain()
        left = grace - (time.monotonic() - started)
        stopping = asyncio.create_task(self._listener.stop(left + _LAST_ANSWERS_SECONDS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._router.drain()
        seen = self.statistics()
        given_up = seen.waiting + seen.running
        self._closing = True  # the last metrics are sent when all is closed
        await self._router.close()
        self._methods.health.end_watches()
        await stopping
        await self._end()
        log.info(
            "stopped",
            seconds=round(time.monotonic() - started, 3),
            given_up=given_up,
            answered=seen.answered,
            runs=sum(seen.batches.values()),
            rows_run=seen.rows_run,
        )
        return ExitCode.GRACE_RAN_OUT if given_up else ExitCode.DRAINED

    async def _give_up(self, lost: EngineError) -> ExitCode:
        log.error("engine lost", reason=str(lost))
        self._turn_unready(alive=False)
        # Health watchers get the last status before their streams end.
        await asyncio.sleep(_LAST_STATUS_SECONDS)
        await self._end()
        return ExitCode.ENGINE_LOST


def _secrets(network: NetworkSettings, listener: Listener, access: Access | None) -> list[ReloadedFiles[Any]]:
    """Watch the files of certificates and tokens: each is read at the start and whenever it changes."""
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


def _preparing(availability: Availability, attributes: ItemAttributes) -> Callable[[Version], Awaitable[None]]:
    """The checks of a version before it answers any request."""

    async def prepare(version: Version) -> None:
        await attributes.attach(version)
        await availability.attach(version)

    return prepare


def _client_command(network: NetworkSettings, port: int) -> str:
    """A command to ask this server with; a `port` of 0 is not listened on yet, and is the one of the settings."""
    words = ["recommender client"]
    if network.host not in ("localhost", "127.0.0.1", "0.0.0.0", "::"):  # noqa: S104 (not listened on)
        words.append(f"--host {network.host}")
    words.append(f"--port {port or network.port}")
    if network.tls_certificate is not None:
        words.append("--ca CA.pem")
    if network.tls_client_ca is not None:
        words.append("--certificate CLIENT.pem --key CLIENT.key")
    if network.tokens_file is not None:
        words.append("--token-file TOKEN")
    return " ".join(words)


def _security(network: NetworkSettings) -> str:
    """How the port is secured, in a word or two, for the log."""
    transport = "plaintext" if network.tls_certificate is None else "TLS" if network.tls_client_ca is None else "mTLS"
    return transport if network.tokens_file is None else f"{transport}, tokens"
